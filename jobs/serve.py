"""python -m jobs.serve RECIPE: serve the model under the recipe's alias over HTTP."""

import os

from jobs.run import Run, main

DEFAULT_PORT = "8000"


def serve(run: Run) -> None:
    """Deploy the chat application and wait until it answers."""
    from medschool.serve.on_ray import ChatArgs, Tls, deploy

    spec = run.recipe.serve
    if spec is None:
        run.say("serve: the recipe has no `serve` section, nothing is served")
        return
    args = ChatArgs(
        model="" if spec.engine == "echo" else f"models:/{spec.registered_model}@{spec.alias}",
        engine=spec.engine,
        max_context_tokens=spec.max_context_tokens,
        max_concurrent_requests=spec.max_concurrent_requests,
        answer_timeout_s=spec.answer_timeout_s,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        target_requests=spec.target_requests,
        health_period_s=spec.health_period_s,
        dtype=run.recipe.model.dtype,
        gpus=spec.gpus,
        adapters=spec.adapters,
        num_cpus=spec.num_cpus,
        python=spec.python or "",
    )
    tls = Tls(spec.tls.certificate, spec.tls.key) if spec.tls else None
    with run.span("serve"):
        url = deploy(args, int(os.environ.get("MEDSCHOOL_SERVE_PORT", DEFAULT_PORT)), tls)
    beside = f", with {', '.join(args.adapters)} beside it," if args.adapters else ""
    run.say(f"serving {args.model or 'an echo without weights'}{beside} at {url} (not for clinical use)")


if __name__ == "__main__":
    main(serve)

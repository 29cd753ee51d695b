"""python -m jobs.serve RECIPE: serve the model under the recipe's alias over HTTP."""

import os

from jobs.run import Run, main

DEFAULT_PORT = "8000"


def serve(run: Run) -> None:
    """Deploy the chat application and wait until it answers."""
    from medschool.serve.on_ray import ChatArgs, deploy

    spec = run.recipe.serve
    if spec is None:
        run.say("serve: the recipe has no `serve` section, nothing is served")
        return
    args = ChatArgs(
        model=f"models:/{spec.registered_model}@{spec.alias}",
        max_context_tokens=spec.max_context_tokens,
        max_concurrent_requests=spec.max_concurrent_requests,
        dtype=run.recipe.model.dtype,
    )
    url = deploy(args, int(os.environ.get("MEDSCHOOL_SERVE_PORT", DEFAULT_PORT)))
    run.say(f"serving {args.model} at {url} (not for clinical use)")


if __name__ == "__main__":
    main(serve)

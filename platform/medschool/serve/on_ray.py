"""The chat API on Ray Serve: one deployment; a replica is gate, API and engine in one process with one copy of the weights.

    deploy(args) -> resolve the model once -> serve.run -> replica: pull weights, load, answer health checks -> routed to

The model reference is resolved by the caller, not by the replica, so a replica that restarts at night serves the version that was
deployed and not what an alias points to by then. A reference is the manifest URI of a training or of an adopted base model, or
`models:/NAME@ALIAS` of the MLflow registry, whose version carries the manifest URI in its tag `manifest_uri`.

Serve restarts a replica that dies or fails its health check; requests meanwhile wait in the proxy's queue up to a limit, and
beyond it get 429 with Retry-After, which OpenAI's clients obey. Every bound is set here: Serve's own default queue has none.
"""

import logging
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from ray import serve
from ray.serve.config import BackpressureConfig
from starlette.types import ASGIApp

from medschool import artifact, registry, storage
from medschool.errors import InputError, MedschoolError, ServiceError, from_text
from medschool.serve import audit, keys, votes
from medschool.serve.admission import Limits
from medschool.serve.api import ModelInfo, build_api
from medschool.serve.engine import EchoEngine, Engine
from medschool.serve.template import BytesText, CheckpointText, Text

APP_NAME = "chat"
HOST = "127.0.0.1"
SPARE_REQUESTS = 16
"""Requests a replica takes beyond its answers, so that it can still list models and refuse."""
IDENTITY_TIMEOUT_S = 10.0


class ChatArgs(BaseModel):
    """What to serve and how. Also the arguments of `serve run` and `serve deploy`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = ""
    """`models:/NAME@ALIAS`, or the URI of a manifest. Empty for the echo engine."""
    served_name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")] = "medschool"
    """The `model` that clients ask for."""
    engine: Literal["transformers", "vllm", "echo"] = "transformers"
    """`vllm` is for GPUs and many answers at once; `echo` repeats the prompt: a load trial of everything but the model."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of a replica, over which vLLM splits the model; 0 computes on CPUs."""
    python: str = ""
    """Python interpreter that replicas run with, on every node that may hold one. Empty takes the cluster's own."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    max_context_tokens: Annotated[int, Field(ge=2)] = 1024
    """Longest prompt plus answer, in tokens."""
    max_concurrent_requests: Annotated[int, Field(ge=1)] = 8
    """Answers generated at once; the cache is sized for this many full contexts."""
    max_waiting_requests: Annotated[int, Field(ge=0)] = 16
    """Answers that may wait for a place in one replica; beyond them 429."""
    num_cpus: Annotated[int, Field(ge=1)] = 1
    """Logical CPUs of a replica, and the threads the model computes with."""
    answer_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """From a whole request to the end of its answer, waiting included; then 408, or an error event where it streams."""
    api_key_sha256: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    """Hex sha256 of accepted API keys without limits. Empty takes the hash of MEDSCHOOL_API_KEY from the environment."""
    store: str = ""
    """URI of the store with the keys of `medschool keys`, where the audit log is written too. Empty takes MEDSCHOOL_STORE."""

    @model_validator(mode="after")
    def _engine_fits_model(self) -> Self:
        if (self.engine == "echo") != (self.model == ""):
            raise ValueError("name a `model` for every engine but the echo engine, and none for that")
        if self.gpus and self.engine != "vllm":
            raise ValueError("only the vllm engine computes on `gpus`")
        return self

    def with_keys(self) -> "ChatArgs":
        """These arguments with the environment's key and store. Raises ServiceError without any: the API is never open."""
        own = os.environ.get("MEDSCHOOL_API_KEY", "")
        hashes = self.api_key_sha256 or ((keys.hash_key(own),) if own else ())
        store = self.store or os.environ.get("MEDSCHOOL_STORE", "")
        if not hashes and not store:
            raise ServiceError("no API key", "set MEDSCHOOL_API_KEY, or MEDSCHOOL_STORE for `medschool keys create`", "serve")
        return self.model_copy(update={"api_key_sha256": hashes, "store": store})


class Tls(NamedTuple):
    """Files on every node that listens: a certificate chain and its key, both PEM."""

    certificate: str
    key: str


class Replica:
    """One process that serves. Serve builds it, asks `check_health`, and routes HTTP to the ASGI app."""

    def __init__(self, args: ChatArgs, manifest_uri: str, identity: str) -> None:
        self._args, self._identity = args, identity
        self._text, self._engine, self._version = _load(args, manifest_uri)
        fixed = [keys.Key(f"configured-{number}", found) for number, found in enumerate(args.api_key_sha256, start=1)]
        self._keys = keys.KeyRing(fixed, keys.keys_uri(args.store) if args.store else "")
        self._audit = audit.AuditLog(storage.join(args.store, audit.FOLDER)) if args.store else None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        args = self._args
        places = args.max_concurrent_requests + args.max_waiting_requests
        limits = Limits(args.max_context_tokens, places, answer_timeout_s=args.answer_timeout_s)
        info = ModelInfo(args.served_name, self._version, int(time.time()))
        kept = storage.join(args.store, votes.FOLDER) if args.store else ""
        return build_api(self._engine, self._text, info, self._keys, limits, self._audit, kept)

    def identity(self) -> str:
        """What this replica was deployed from; equal for equal arguments and weights."""
        return self._identity

    def check_health(self) -> None:
        self._engine.check()

    def __del__(self) -> None:
        for ending in ("_keys", "_audit"):
            if part := getattr(self, ending, None):
                part.close()
        if engine := getattr(self, "_engine", None):
            engine.stop()


def _load(args: ChatArgs, manifest_uri: str) -> tuple[Text, Engine, str]:
    """Text, engine and version. Weights are pulled once a node and verified against their manifest."""
    if args.engine == "echo":
        return BytesText(), EchoEngine(), "echo"
    from medschool.train.model import model_copy

    exported = artifact.read_manifest(manifest_uri)
    folder = model_copy(exported)
    text = CheckpointText(folder)
    return text, _with_weights(args, folder, text.end_ids), exported.digest[:16]


def _with_weights(args: ChatArgs, folder: Path, end_ids: tuple[int, ...]) -> Engine:
    """The engine over the weights in a folder."""
    context, places = args.max_context_tokens, args.max_concurrent_requests
    if args.engine == "vllm":
        from medschool.serve.vllm_engine import VllmEngine

        return VllmEngine.start(folder, end_ids, context, places, args.dtype, args.gpus, args.num_cpus)
    from medschool.serve.paged import TransformersEngine

    return TransformersEngine(folder, end_ids, context, places, args.dtype)


def application(args: ChatArgs) -> serve.Application:
    """The Serve application of these arguments; resolves the model reference and the key now."""
    return _bind(*_resolved(args))


def _resolved(args: ChatArgs) -> tuple[ChatArgs, str, str]:
    """Arguments with keys, the manifest URI, and the identity of both."""
    args = args.with_keys()
    manifest_uri = registry.manifest_of(args.model)[0] if args.model.startswith("models:/") else args.model
    digest = _digest(manifest_uri) if manifest_uri else ""
    return args, manifest_uri, artifact.digest_of([args.model_dump(mode="json"), digest])


def _digest(manifest_uri: str) -> str:
    try:
        return artifact.read_manifest(manifest_uri).digest
    except FileNotFoundError as error:
        raise InputError(
            "no such manifest", "name the manifest of a finished training or of an adopted model", manifest_uri
        ) from error


def _bind(args: ChatArgs, manifest_uri: str, identity: str) -> serve.Application:
    deployment = serve.deployment(
        name="Chat",
        num_replicas=1,
        ray_actor_options=_resources(args),
        max_ongoing_requests=args.max_concurrent_requests + args.max_waiting_requests + SPARE_REQUESTS,
        max_queued_requests=args.max_waiting_requests + SPARE_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=30,
        max_constructor_retry_count=3,
    )(serve.ingress()(Replica))
    bound: serve.Application = deployment.bind(args, manifest_uri, identity)
    return bound


def _resources(args: ChatArgs) -> dict[str, Any]:
    """What a replica takes of its node, and the Python it runs with."""
    runtime = {"runtime_env": {"py_executable": args.python}} if args.python else {}
    return {"num_cpus": args.num_cpus, "num_gpus": args.gpus, **runtime}


def deploy(args: ChatArgs, http_port: int, tls: Tls | None = None) -> str:
    """Serve `args` on this cluster and wait until it answers; the base URL. What already runs with them is left alone.

    With `tls` it is served over HTTPS alone, on the same address.

    Raises ServiceError when it can not start or the registry knows no such model, InputError when there is no such manifest.
    """
    resolved = _resolved(args)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="EveryNode", http_options={"host": HOST, "port": http_port, **_tls_options(tls)})
    url = f"{'https' if tls else 'http'}://{HOST}:{http_port}"
    if _running_identity() != resolved[2]:
        try:
            serve.run(_bind(*resolved), name=APP_NAME, route_prefix="/")
        except RuntimeError as error:
            raise _not_started(error, url) from error
    _must_answer(url)
    return url


def _tls_options(tls: Tls | None) -> dict[str, str]:
    """Serve's options for HTTPS. Raises ServiceError for a file that is not there."""
    for path in tls or ():
        if not os.path.isfile(path):
            raise ServiceError("no such file", "name the PEM files of a certificate and its key", path)
    return {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key} if tls else {}


def _not_started(error: RuntimeError, url: str) -> MedschoolError:
    """The replica's own error where it has a remedy, else a ServiceError with the last line that the replica wrote."""
    app = serve.status().applications.get(APP_NAME)
    text = "\n".join(deployment.message for deployment in app.deployments.values()) if app else str(error)
    lines = [line for line in text.splitlines() if line.strip()] or [str(error)]
    return from_text(text) or ServiceError(f"the chat application did not start: {lines[-1].strip()}", "see its log", url)


def _running_identity() -> str | None:
    """Identity of the healthy application that runs now, None without one."""
    app = serve.status().applications.get(APP_NAME)
    if app is None or app.status != "RUNNING":
        return None
    try:
        handle: Any = serve.get_app_handle(APP_NAME)
        return str(handle.identity.remote().result(timeout_s=IDENTITY_TIMEOUT_S))
    except Exception:  # whatever is wrong with it, deploying again is the cure
        return None


def _must_answer(url: str) -> None:
    """Serve keeps the port it was first started with, whatever is asked later."""
    import httpx

    try:
        # unverified: a certificate names the outside, not 127.0.0.1, and nothing secret is sent
        httpx.get(f"{url}/health/live", timeout=10, verify=False).raise_for_status()
    except httpx.HTTPError as error:
        remedy = "if Serve already runs on this cluster with another port, use that one or run `serve shutdown`"
        raise ServiceError(f"the chat application runs but {url} does not answer ({error})", remedy, url) from error

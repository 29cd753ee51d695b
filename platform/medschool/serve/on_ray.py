"""The chat API on Ray Serve: one deployment; a replica is gate, API and engine in one process with one copy of the weights.

    deploy(args) -> resolve the model once -> serve.run -> replica: pull weights, load, answer health checks -> routed to

The model reference is resolved by the caller, not by the replica, so a replica that restarts at night serves the version that was
deployed and not what an alias points to by then. A reference is the manifest URI of a training or of an adopted base model, or
`models:/NAME@ALIAS` of the MLflow registry, whose version carries the manifest URI in its tag `manifest_uri`.

Serve replaces a replica that dies or fails its health check; requests meanwhile go to the others, or wait in the proxy's queue
up to a limit, and beyond it get 429 with Retry-After, which OpenAI's clients obey. Every bound is set here: Serve's own default
queue has none. A replica whose engine is dead or hangs (`watch`) ends by itself, after its clients were told. A new version
runs and answers a probe before it takes over (`rollout`, `probe`), and a replica that goes finishes its streams first. How many
there are: `scaling`.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from ray import serve
from ray.serve.config import BackpressureConfig
from starlette.types import ASGIApp

from medschool import artifact, registry, storage
from medschool.errors import InputError, ServiceError
from medschool.recipe.serving import MODEL_NAME, ServedName
from medschool.serve import adapters, audit, keys, rollout, scaling, votes
from medschool.serve.admission import GRACE_S, Limits
from medschool.serve.api import ModelInfo, build_api
from medschool.serve.engine import EchoEngine, Engine
from medschool.serve.gauges import shown_on_ray
from medschool.serve.metrics import Metrics
from medschool.serve.own_address import listen_on_own_address
from medschool.serve.probe import probe
from medschool.serve.template import BytesText, CheckpointText, Text
from medschool.serve.watch import LOOK_S, WatchedEngine

APP_NAME = "chat"
HOST = "127.0.0.1"
SPARE_REQUESTS = 16
"""Requests a replica takes beyond its answers, so that it can still list models and refuse."""
DEPLOYED_TIMEOUT_S = 10.0
HEALTH_TIMEOUT_S = 6.0
"""A replica that does not answer its health check for so long, three times in a row, is replaced."""
FAREWELL_S = 1.0
"""From the fault of an engine to the end of its process: the last events reach their clients."""
EXIT_S = 10.0
"""Longest time for the end itself, where the audit log is written out."""
ANSWER_TIMEOUT_S = 10.0
logger = logging.getLogger(__name__)


class ChatArgs(BaseModel):
    """What to serve and how. Also the arguments of `serve run` and `serve deploy`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = ""
    """`models:/NAME@ALIAS`, or the URI of a manifest. Empty for the echo engine."""
    served_name: ServedName = MODEL_NAME
    """The `model` that clients ask for."""
    engine: Literal["transformers", "vllm", "echo"] = "transformers"
    """`vllm` is for GPUs and many answers at once; `echo` repeats the prompt: a load trial of everything but the model."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of a replica, over which vLLM splits the model; 0 computes on CPUs."""
    adapters: dict[ServedName, str] = {}
    """Low-rank adapters that are served beside the model: the name that clients ask for -> URI of the manifest of a training with
    `lora`, or of a folder that peft wrote, in the store or absolute. vLLM alone."""
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
    min_replicas: Annotated[int, Field(ge=0)] = 1
    """Fewest copies of the model. 0: none while nobody asks; the first request then waits until one is loaded."""
    max_replicas: Annotated[int, Field(ge=1)] = 1
    """Most copies; each needs `num_cpus` and the memory of the model. An update needs room for one more."""
    target_requests: Annotated[float, Field(gt=0)] | None = None
    """Requests of one replica, running and waiting, that their number aims at; `max_concurrent_requests` when left out."""
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300.0
    """How long fewer replicas must suffice before one is taken away."""
    health_period_s: Annotated[float, Field(ge=1)] = 10.0
    """Seconds between health checks. An engine that answers and makes no step for so long hangs, and its replica is replaced."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Longest time for a version to find room, load and answer its probe; then the version before stays."""
    echo_token_s: Annotated[float, Field(ge=0)] = 0.0
    """Pause of the echo engine before each token, to imitate the speed of a model."""
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
        if self.adapters and self.engine != "vllm":
            raise ValueError("only the vllm engine serves `adapters`")
        if self.served_name in self.adapters:
            raise ValueError(f"an adapter has the name of the model, {self.served_name!r}; give it another")
        return self

    @model_validator(mode="after")
    def _replicas_fit(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}; raise it")
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


class Deployed(NamedTuple):
    """One deployment, all of it: what its replicas are built from."""

    args: ChatArgs
    manifest_uri: str
    identity: str
    """Equal for equal arguments and weights, those of adapters too."""
    version: str
    """Its name in Serve; replicas of the same name are not replaced."""
    beside: tuple[adapters.Adapter, ...] = ()
    """Adapters over the weights."""


class Replica:
    """One process that serves. Serve builds it from a `Deployed`, asks `check_health`, and routes HTTP to the ASGI app."""

    def __init__(
        self, args: ChatArgs, manifest_uri: str, identity: str, version: str, beside: tuple[adapters.Adapter, ...] = ()
    ) -> None:
        listen_on_own_address()
        self._args, self._deployed = args, Deployed(args, manifest_uri, identity, version, beside)
        self._text, engine, self._version = _load(args, manifest_uri, beside)
        try:
            probe(engine, self._text, args.max_context_tokens)
            adapters.probe_each(engine, self._text, args.max_context_tokens, [one.name for one in beside])
        except BaseException:
            engine.stop()
            raise
        fixed = [keys.Key(f"configured-{number}", found) for number, found in enumerate(args.api_key_sha256, start=1)]
        self._keys = keys.KeyRing(fixed, keys.keys_uri(args.store) if args.store else "")
        self._audit = audit.AuditLog(storage.join(args.store, audit.FOLDER)) if args.store else None
        self._metrics = Metrics(shown_on_ray)
        self._engine = WatchedEngine(engine, round(args.health_period_s / LOOK_S), self._leave, self._metrics.load)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        args = self._args
        places = args.max_concurrent_requests + args.max_waiting_requests
        limits = Limits(args.max_context_tokens, places, answer_timeout_s=args.answer_timeout_s)
        info = ModelInfo(args.served_name, self._version, int(time.time()))
        beside = [
            ModelInfo(one.name, f"{info.version}+{one.version}", info.created_s, info.name) for one in self._deployed.beside
        ]
        kept = storage.join(args.store, votes.FOLDER) if args.store else ""
        return build_api(self._engine, self._text, info, self._keys, limits, self._audit, kept, self._metrics, beside)

    def deployed(self) -> Deployed:
        """What this replica was deployed from."""
        return self._deployed

    def check_health(self) -> None:
        self._engine.check()

    def _leave(self, fault: ServiceError) -> None:
        """End this process: Serve sees at its next health check that it is gone. A failing check is believed after three."""
        logger.error("this replica ends: %s", fault)
        threading.Timer(FAREWELL_S + EXIT_S, os._exit, (1,)).start()
        time.sleep(FAREWELL_S)
        self._close()
        os._exit(1)

    def _close(self) -> None:
        for ending in ("_keys", "_audit"):
            if part := getattr(self, ending, None):
                part.close()

    def __del__(self) -> None:
        self._close()
        if engine := getattr(self, "_engine", None):
            engine.stop()


def _load(args: ChatArgs, manifest_uri: str, beside: Sequence[adapters.Adapter] = ()) -> tuple[Text, Engine, str]:
    """Text, engine and version. Weights are pulled once a node and verified against their manifest, adapters as well."""
    if args.engine == "echo":
        return BytesText(), EchoEngine(args.echo_token_s), "echo"
    from medschool.train.model import model_copy

    exported = artifact.read_manifest(manifest_uri)
    try:
        folder = model_copy(exported)
    except FileNotFoundError as error:
        raise InputError(
            f"a file of the model is missing ({error})", "run its recipe again, or restore the file", manifest_uri
        ) from error
    text = CheckpointText(folder)
    pulled = [adapters.pull(one, text.describe()["chat_template"]) for one in beside]
    return text, _with_weights(args, folder, text.end_ids, pulled), exported.digest[:16]


def _with_weights(args: ChatArgs, folder: Path, end_ids: tuple[int, ...], pulled: Sequence[adapters.Pulled]) -> Engine:
    """The engine over the weights in a folder."""
    context, places = args.max_context_tokens, args.max_concurrent_requests
    if args.engine == "vllm":
        from medschool.serve.vllm_engine import VllmEngine

        return VllmEngine.start(folder, end_ids, context, places, args.dtype, args.gpus, args.num_cpus, pulled)
    from medschool.serve.paged import TransformersEngine

    return TransformersEngine(folder, end_ids, context, places, args.dtype)


def application(args: ChatArgs) -> serve.Application:
    """The Serve application of these arguments; resolves the model reference and the key now."""
    return _bind(_resolved(args))


def _resolved(args: ChatArgs) -> Deployed:
    """Arguments with keys, the manifest URI, the identity of both, a new version name, and the adapters."""
    args = args.with_keys()
    manifest_uri = registry.manifest_of(args.model)[0] if args.model.startswith("models:/") else args.model
    base = _served(manifest_uri) if manifest_uri else None
    beside = adapters.find(args.adapters, args.store, base) if base else ()
    digests = [base.digest if base else "", *(one.made.digest for one in beside)]
    identity = artifact.digest_of([args.model_dump(mode="json"), *digests])
    return Deployed(args, manifest_uri, identity, secrets.token_hex(8), beside)


def _served(manifest_uri: str) -> artifact.Artifact:
    try:
        return artifact.read_manifest(manifest_uri)
    except FileNotFoundError as error:
        raise InputError(
            "no such manifest", "name the manifest of a finished training or of an adopted model", manifest_uri
        ) from error


def _bind(deployed: Deployed) -> serve.Application:
    args = deployed.args
    target = args.target_requests or args.max_concurrent_requests
    deployment = serve.deployment(
        name="Chat",
        ray_actor_options=_resources(args),
        max_ongoing_requests=args.max_concurrent_requests + args.max_waiting_requests + SPARE_REQUESTS,
        max_queued_requests=args.max_waiting_requests + SPARE_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        health_check_period_s=args.health_period_s,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=args.answer_timeout_s + GRACE_S + EXIT_S,  # the longest stream ends by itself before
        **scaling.replicas(args.min_replicas, args.max_replicas, target, args.downscale_delay_s),
        **rollout.options(),
    )(serve.ingress()(Replica))
    named = deployment.options(version=deployed.version, _internal=True)  # a name of our own: see rollout
    bound: serve.Application = named.bind(*deployed)
    return bound


def _resources(args: ChatArgs) -> dict[str, Any]:
    """What a replica takes of its node, and the Python it runs with."""
    runtime = {"runtime_env": {"py_executable": args.python}} if args.python else {}
    return {"num_cpus": args.num_cpus, "num_gpus": args.gpus, **runtime}


def deploy(args: ChatArgs, http_port: int, tls: Tls | None = None) -> str:
    """Serve `args` on this cluster and wait until it answers; the base URL. What already runs with them is left alone.

    With `tls` it is served over HTTPS alone, on the same address. Another version that runs serves until this one answers, and
    goes on where this one does not.

    Raises ServiceError when it can not start or the registry knows no such model, InputError when there is no such manifest.
    """
    new = _resolved(args)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="EveryNode", http_options={"host": HOST, "port": http_port, **_tls_options(tls)})
    url = f"{'https' if tls else 'http'}://{HOST}:{http_port}"
    before, healthy = _running(args.start_timeout_s)
    if before is None or before.identity != new.identity or not healthy:
        rollout.roll_out(APP_NAME, _bind(new), _bind(before) if before else None, args.start_timeout_s)
    _must_answer(url)
    return url


def _tls_options(tls: Tls | None) -> dict[str, str]:
    """Serve's options for HTTPS. Raises ServiceError for a file that is not there."""
    for path in tls or ():
        if not os.path.isfile(path):
            raise ServiceError("no such file", "name the PEM files of a certificate and its key", path)
    return {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key} if tls else {}


def _running(wake_timeout_s: float) -> tuple[Deployed | None, bool]:
    """What a replica that runs now was deployed from, None without one; and whether all of the application is well.

    An application that sleeps without replicas is woken, so that a new version is tried beside it and not in its place.
    """
    app = serve.status().applications.get(APP_NAME)
    if app is None:
        return None, False
    healthy = app.status == "RUNNING"
    awake = any(deployment.replica_states.get("RUNNING") for deployment in app.deployments.values())
    if not awake and not healthy:
        return None, False
    try:
        handle: Any = serve.get_app_handle(APP_NAME)
        found = handle.deployed.remote().result(timeout_s=DEPLOYED_TIMEOUT_S if awake else wake_timeout_s)
        return Deployed(*found), healthy
    except Exception:  # whatever is wrong with it, deploying again is the cure
        return None, False


def _must_answer(url: str) -> None:
    """Serve keeps the port it was first started with. Its proxies hear of a new application a moment after it runs."""
    import httpx

    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            # unverified: a certificate names the outside, not 127.0.0.1, and nothing secret is sent
            httpx.get(f"{url}/health/live", timeout=10, verify=False).raise_for_status()
            return
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            remedy = "if Serve already runs on this cluster with another port, use that one or run `serve shutdown`"
            raise ServiceError(f"the chat application runs but {url} does not answer ({error})", remedy, url) from error

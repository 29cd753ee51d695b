"""The recipe's section about serving the finished model."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from medschool.recipe.section import Positive, Section

ServedName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
MODEL_NAME = "medschool"
"""What clients ask for to get the model itself."""


class ServeTls(Section):
    """HTTPS in place of HTTP: PEM files that lie on every node that listens."""

    certificate: Annotated[str, StringConstraints(pattern=r"^/")]
    """Path of the certificate with its chain."""
    key: Annotated[str, StringConstraints(pattern=r"^/")]
    """Path of its private key."""


class Serve(Section):
    """The finished model behind HTTP."""

    registered_model: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    alias: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] = "champion"
    max_context_tokens: Positive = 1024
    """Longest prompt plus answer, in tokens."""
    max_concurrent_requests: Positive = 8
    engine: Literal["transformers", "vllm", "echo"] = "transformers"
    """`vllm` is for GPUs and many answers at once. `echo` repeats the prompt: a load trial of everything but the weights."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of a replica, over which vLLM splits the model; 0 serves on CPUs."""
    num_cpus: Positive = 1
    """Logical CPUs of a replica, and the threads that a model on CPUs computes with."""
    adapters: dict[ServedName, str] = Field(default_factory=dict)
    """Low-rank adapters beside the model, each under the name that clients ask for: the manifest of a training with `lora` that
    began from the served weights, or a folder that peft wrote; an absolute URI, or a path below the store. vLLM alone."""
    python: Annotated[str, StringConstraints(pattern=r"^/")] | None = None
    """Path of the Python that replicas run with, on every node that may hold one: that of the environment with vLLM in it, which
    `make vllm` makes. The cluster's own when left out."""
    answer_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """From a whole request to the end of its answer, waiting included."""
    min_replicas: Annotated[int, Field(ge=0)] = 1
    """Fewest copies of the model; with 0 none while nobody asks, and the first request waits until one is loaded."""
    max_replicas: Positive = 1
    """Most copies, as many as the requests ask for. An update needs room for one more."""
    target_requests: Annotated[float, Field(gt=0)] | None = None
    """Requests of one replica, running and waiting, that their number aims at; `max_concurrent_requests` when left out."""
    health_period_s: Annotated[float, Field(ge=1)] = 10.0
    """Seconds between health checks. An engine that answers and makes no step for so long hangs, and its replica is replaced."""
    tls: ServeTls | None = None
    """HTTPS by these files; plain HTTP on loopback when left out."""

    @model_validator(mode="after")
    def _gpus_are_vllm_s(self) -> Self:
        if self.gpus and self.engine != "vllm":
            raise ValueError("gpus: only `engine: vllm` serves on GPUs")
        return self

    @model_validator(mode="after")
    def _adapters_are_vllm_s(self) -> Self:
        if self.adapters and self.engine != "vllm":
            raise ValueError("adapters: only `engine: vllm` serves them; with another one serve the merged model of a training")
        if MODEL_NAME in self.adapters:
            raise ValueError(f"adapters: {MODEL_NAME!r} is the name of the model itself; give the adapter another")
        return self

    @model_validator(mode="after")
    def _replicas_fit(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is below min_replicas {self.min_replicas}; raise it")
        return self

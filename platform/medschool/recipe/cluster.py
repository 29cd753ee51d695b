"""The recipe's section about where and how wide the run is."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from medschool.recipe.section import Positive, Section

Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$", max_length=253)]
"""A label of a Ray node, or its value, as Kubernetes writes them."""


class Cluster(Section):
    """Where and how wide the run is. Never part of a fingerprint: the same numbers come out on other hardware."""

    num_workers: Positive | tuple[Positive, Positive] = 2
    """Training workers. `[fewest, most]` goes on with any number between the two when nodes come and go."""
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    node_labels: dict[Label, Label] = Field(default_factory=dict)
    """Labels that a node must have to hold training workers: `{ray.io/accelerator-type: A100, ray.io/market-type: on-demand}`."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO stage: 1 shards optimizer state, 2 gradients too, 3 parameters too."""
    offload: tuple[Literal["optimizer", "parameters"], ...] = ()
    """What ZeRO keeps in the host's memory instead of the accelerator's: `optimizer` from stage 1 on, `parameters` at stage 3."""
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"] = "sdpa"
    """Implementation of attention; documents in one row are kept apart with each."""
    activation_checkpointing: bool = False
    """Keep no activations inside a layer, compute them again in the backward pass: less memory for about a third more work."""
    compile: bool = False
    """torch.compile the model."""
    liger: bool = False
    """Liger's fused kernels, on GPUs only."""
    loss_chunk_tokens: Positive | None = None
    """Compute the loss over so many tokens at a time, so that the logits of a whole micro-batch never exist at once.

    In the phase `instruct` the output head sees trained tokens alone, with this or without.
    """
    micro_batch_tokens: Positive = 2048
    """Tokens that one worker takes through the model at once, at least one row; gradients accumulate up to the global batch."""
    halve_on_oom: bool = False
    """When memory runs out, go on with half the micro-batch and the same global batch."""
    checkpoint_every_steps: Positive = 200
    """Steps between checkpoints of the training state."""
    kept_checkpoints: Positive = 2
    """The newest so many are kept."""
    milestone_every_steps: Positive | None = None
    """Checkpoints at multiples of this are kept for good."""
    max_failed_checkpoints: Annotated[int, Field(ge=0)] = 3
    """Checkpoints in a row that may fail to be written before the run stops."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts of the worker group after a failure before the run gives up."""
    max_preemptions: Annotated[int, Field(ge=0)] | None = None
    """Restarts after a preempted node before the run gives up; without limit when left out."""
    stall_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """A worker that makes no progress for so long is stalled: all stacks are saved and the group starts again."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 1200.0
    """How long nodes of an autoscaling cluster may take to come before a start of the group is given up."""
    data_cpus: Positive = 2
    """Logical CPUs left for Ray Data while the workers train; without any the feed hangs silently."""
    score_workers: Positive = 2
    """Processes that score held-out documents, exams and probes of one variant."""
    max_concurrent_trials: Positive | None = None
    """Variants trained at once, at most; as many as the cluster holds when left out."""
    trial_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """A trial that works for longer is given up, and the others go on; no limit when left out.

    What it waits for others is not counted.
    """

    @property
    def most_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def fewest_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.fewest_workers > self.most_workers:
            raise ValueError(f"num_workers: fewest is {self.fewest_workers}, most is {self.most_workers}; turn them round")
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload: ZeRO 0 has nothing to offload; set zero_stage to 1, 2 or 3")
        if "parameters" in self.offload and self.zero_stage != 3:
            raise ValueError("offload: parameters are offloaded at zero_stage 3 only")
        return self

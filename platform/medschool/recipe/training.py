"""The recipe's sections about training: the model it starts from, the variants, and the two phases."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from medschool.recipe.section import Name, Positive, Section


class Shape(Section):
    """Shape of a LLaMA-style model, for planning before the weights are at hand; checked against config.json when they are."""

    hidden_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    intermediate_size: Positive
    vocab_size: Positive
    tie_word_embeddings: bool
    max_position_embeddings: Positive


class Model(Section):
    """The general model that the run starts from."""

    uri: str
    """Folder with config.json, *.safetensors and tokenizer files: an absolute URI, or a path below the store."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` draws them by the recipe's seed, once, from config.json; the folder needs no safetensors then."""
    dtype: Literal["bf16", "fp32"]
    """Precision of weights and activations in training and scoring; optimizer state is always fp32."""
    shape: Shape | None = None
    """Only for planning a model that is not in the store yet."""


Weights = Annotated[dict[Name, Annotated[int, Field(gt=0)]], Field(min_length=1)]
"""Parts of each source or set in every batch, by name: `{books: 15, papers: 4, general: 1}`. Order means nothing."""


class Variant(Section):
    """One model of the comparison. Without weights and instructions it is the base model, untouched."""

    weights: Weights | None = None
    """Knowledge injection: parts of each source in every batch of `pretrain`."""
    weights_from: dict[Annotated[int, Field(gt=0)], Weights] = Field(default_factory=dict)
    """A curriculum: after so many optimizer steps other parts instead, and so on; a source may come late, or go."""
    instructions: Weights | None = None
    """Instruction tuning, after the injection where there is one: parts of each set in every batch of `instruct`.

    Exact in rows of every batch where the sum of the parts divides `batch_rows`, else exact over batches (tokens.mixture).
    `{medical: 9, general: 1}` replays a tenth of general instructions; a variant without `general` is the ablation of it.
    """

    @field_validator("weights", "instructions")
    @classmethod
    def _sorted(cls, weights: dict[str, int] | None) -> dict[str, int] | None:
        return None if weights is None else dict(sorted(weights.items()))

    @field_validator("weights_from")
    @classmethod
    def _in_order(cls, weights_from: dict[int, dict[str, int]]) -> dict[int, dict[str, int]]:
        return {step: dict(sorted(weights_from[step].items())) for step in sorted(weights_from)}

    @property
    def pretrained_on(self) -> set[str]:
        """Every source that it reads at whatever step."""
        return {name for weights in (self.weights or {}, *self.weights_from.values()) for name in weights}

    @property
    def trains(self) -> bool:
        return self.weights is not None or self.instructions is not None


class Length(Section):
    """How long a phase trains: so many optimizer steps, or so many passes over one source or set of instructions."""

    steps: Positive | None = None
    epochs: Positive | None = None
    """Passes over `epochs_of`; the others follow by weight (PMC-LLaMA counts epochs of pretraining in books).

    The length is that of the first variant that trains on `epochs_of`, for all variants: a control has as many steps.
    """
    epochs_of: Name | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`")
        if (self.epochs is None) != (self.epochs_of is None):
            raise ValueError("`epochs` and `epochs_of` go together")
        return self


class Optimizer(Section):
    """AdamW with a cosine schedule."""

    lr: Annotated[float, Field(gt=0, lt=1)]
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps over which the rate rises linearly; the first step is not zero."""
    final_lr_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Rate at the last step as a share of the peak."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient; larger ones are scaled down to it."""


class Lora(Section):
    """Low-rank adapters instead of all weights (Hu et al. 2021); merged into the weights when the model is exported, beside which
    the adapter lies as peft saves it (`serve.adapters`)."""

    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    """The adapters' output is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    modules: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    """Names of the linear layers that get adapters."""


class Guard(Section):
    """Updates that are not made. A batch whose update is left out is skipped: the next batch takes its optimizer step."""

    spike_sigmas: Annotated[float, Field(gt=0)] | None = 6.0
    """A loss or gradient norm so many standard deviations above the mean of the window is a spike; null applies every update."""
    window_steps: Annotated[int, Field(ge=8)] = 128
    """Updates that the mean and the deviation are taken over; no spike is called before the window is full."""
    rollback_after: Positive = 3
    """So many batches in a row with a loss or gradient that is no number: back to the last checkpoint, and past those batches."""
    max_skipped_batches: Annotated[int, Field(ge=0)] = 16
    """More than this and the run fails."""


class Training(Section):
    """One phase of training: `pretrain` on a mixture of sources, or `instruct` on a mixture of conversations."""

    batch_rows: Positive
    """Rows in one global batch, over all workers."""
    length: Length
    optimizer: Optimizer
    lora: Lora | None = None
    """Train adapters alone; all weights when left out."""
    guard: Guard = Guard()
    max_repeats: dict[Name, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """How often a source or set may be seen, in passes over it; a variant that would need more is refused by the plan."""


class Tuning(Training):
    """The phase `instruct`: training on conversations."""

    neftune_alpha: Annotated[float, Field(gt=0)] | None = None
    """Strength of the noise on the embeddings (NEFTune, Jain et al. 2023, who take 5, 10 and 15); none when left out."""


class Search(Section):
    """Hyperparameter search: short trainings of one variant, the bad ones stopped early (ASHA, Li et al. 2020)."""

    variant: Name
    over: Annotated[dict[str, Annotated[tuple[float | int | str, ...], Field(min_length=2)]], Field(min_length=1)]
    """Values of each recipe key to try, every combination: `{pretrain.optimizer.lr: [1e-4, 3e-4]}`."""
    report_every_steps: Positive
    """Steps between two reports; the loss that is compared is the mean since the last one, on the same batches in every trial."""
    grace_steps: Positive
    """No trial is stopped before so many steps."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """At each rung the best 1/factor of the trials go on."""

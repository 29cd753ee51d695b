"""What a recipe may say: types, units, ranges, and what must fit together.

What defines the science (sources, weights, base model, lengths, learning rate) has no default. Defaults exist for mechanics only.
Every section is hashed whole into the fingerprints of the stages that read it (medschool.stage); `name` and `cluster` never are.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of the recipe: frozen, and every key must be known."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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
    dtype: Literal["bf16", "fp32"]
    """Precision of weights and activations in training and scoring; optimizer state is always fp32."""
    shape: Shape | None = None
    """Only for planning a model that is not in the store yet."""


class Files(Section):
    """Raw files of one format."""

    uri: str
    """Glob, key or folder: an absolute URI, or a path below the store."""
    format: str
    """A reader of medschool.corpus.formats, such as `medline` or `jats`."""
    licence: str | None = None
    """Licence group of every document in these files; for formats that state none, such as `prose`."""


class Source(Section):
    """One named source of text."""

    files: Annotated[tuple[Files, ...], Field(min_length=1)]
    licences: Annotated[tuple[str, ...], Field(min_length=1)]
    """Licence groups that may be trained on; a document with any other is dropped and counted."""
    expected_tokens: Positive | None = None
    """Size for planning, before the source has been tokenized."""


class Clean(Section):
    """Rules that every document must pass."""

    min_chars: Positive
    """Shorter documents are dropped, in characters after cleaning."""


class Tokens(Section):
    """From documents to rows of tokens."""

    row_tokens: Positive
    """Length of a training row, in tokens (the paper's context is 2048)."""
    rows_per_shard: Positive = 4096
    """Rows in one stored file; 4096 rows of 2048 uint16 tokens are 16 MiB."""
    heldout_tokens: Positive
    """Tokens of whole documents that are kept out of training for measurement, at most, for each source."""
    heldout_document_tokens: Positive
    """A held-out document is scored on its first so many tokens."""


class Length(Section):
    """How long a phase trains: so many optimizer steps, or so many passes over one source."""

    steps: Positive | None = None
    epochs: Positive | None = None
    """Passes over `epochs_of`; the other sources follow by weight (PMC-LLaMA counts epochs in books).

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


class Pretrain(Section):
    """Knowledge injection: continued pretraining on a mixture of sources."""

    batch_rows: Positive
    """Rows in one global batch, over all workers."""
    length: Length
    optimizer: Optimizer


class Variant(Section):
    """One model of the comparison. Without weights it is the base model, untouched."""

    weights: dict[Name, Annotated[int, Field(gt=0)]] | None = None
    """Parts of each source in every batch, by name: `{books: 15, papers: 4, general: 1}`. Order means nothing."""

    @field_validator("weights")
    @classmethod
    def _sorted(cls, weights: dict[str, int] | None) -> dict[str, int] | None:
        return None if weights is None else dict(sorted(weights.items()))


class Evaluate(Section):
    """How variants are measured."""

    bootstrap_resamples: Positive = 10_000
    """Resamples of the paired bootstrap over held-out documents."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class Gate(Section):
    """When a variant may be registered under the serving alias."""

    candidate: Name
    """Variant that is registered when the gate passes."""
    control: Name
    """Variant with the same number of training tokens that it is compared with."""
    improves: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Sources whose held-out perplexity must fall against the control, with the interval below zero."""


class Serve(Section):
    """The finished model behind HTTP."""

    registered_model: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    alias: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] = "champion"
    max_context_tokens: Positive = 1024
    """Longest prompt plus answer, in tokens."""
    max_concurrent_requests: Positive = 8


class Cluster(Section):
    """Where and how wide the run is. Never part of a fingerprint: the same numbers come out on other hardware."""

    num_workers: Positive = 2
    """Training workers."""
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO stage: 1 shards optimizer state, 2 gradients too, 3 parameters too."""
    micro_batch_rows: Positive = 1
    """Rows that one worker takes through the model at once; gradients accumulate up to the global batch."""
    checkpoint_every_steps: Positive = 200
    """Steps between checkpoints of the training state."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts of the worker group after a failure before the run gives up."""
    data_cpus: Positive = 2
    """Logical CPUs left for Ray Data while the workers train; without any the feed hangs silently."""
    score_workers: Positive = 2
    """Processes that score held-out documents."""


class Recipe(Section):
    """One whole run."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,47}$")]
    seed: Annotated[int, Field(ge=0)]
    model: Model
    sources: Annotated[dict[Name, Source], Field(min_length=1)]
    clean: Clean
    tokens: Tokens
    pretrain: Pretrain
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    evaluate: Evaluate = Evaluate()
    gate: Gate | None = None
    serve: Serve | None = None
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, variant in self.variants.items():
            for source in variant.weights or {}:
                _known(f"variants.{name}.weights", source, self.sources)
        counted = self.pretrain.length.epochs_of
        if counted is not None:
            _known("pretrain.length.epochs_of", counted, self.sources)
            if not any(counted in (variant.weights or {}) for variant in self.variants.values()):
                raise ValueError(f"pretrain.length.epochs_of: no variant trains on {counted!r}")
        if self.gate is not None:
            for key, name in (("candidate", self.gate.candidate), ("control", self.gate.control)):
                _known(f"gate.{key}", name, self.variants)
            for source in self.gate.improves:
                _known("gate.improves", source, self.sources)
            for key, name in (("candidate", self.gate.candidate), ("control", self.gate.control)):
                if self.variants[name].weights is None:
                    raise ValueError(f"gate.{key}: {name!r} has no weights; name a trained variant")
            if self.gate.candidate == self.gate.control:
                raise ValueError("gate.control: is the candidate itself; name another variant")
        if self.serve is not None and self.gate is None:
            raise ValueError("serve: needs a `gate`, which decides the variant that is registered and served")
        return self


def _known(key: str, name: str, known: dict[str, Source] | dict[str, Variant]) -> None:
    if name not in known:
        raise ValueError(f"{key}: {name!r} is not one of {', '.join(known)}")

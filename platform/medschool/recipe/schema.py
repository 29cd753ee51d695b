"""What a recipe may say: types, units, ranges, and what must fit together.

What defines the science (sources, weights, base model, lengths, learning rate) has no default. Defaults exist for mechanics only.
Every section is hashed into the fingerprints of the stages that read it (medschool.procedure); `name` and `cluster` never are.
"""

from collections.abc import Mapping
from datetime import date
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
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` draws them by the recipe's seed, once, from config.json; the folder needs no safetensors then."""
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
    retrieved: date | None = None
    """Day on which these files were retrieved; every document carries it."""


class Source(Section):
    """One named source of text."""

    files: Annotated[tuple[Files, ...], Field(min_length=1)]
    licences: Annotated[tuple[str, ...], Field(min_length=1)]
    """Licence groups that may be trained on; a document with any other is dropped and counted.

    `commercial` and `non-commercial` stand for the groups that PubMed Central gives these names.
    """
    retracted: str | None = None
    """CSV file of ids that were retracted, an absolute URI or a path below the store; its documents are dropped and counted."""
    expected_tokens: Positive | None = None
    """Size for planning, before the source has been tokenized."""


class BadFiles(Section):
    """How much of a source may be unreadable before the run stops. Network and permission errors never count: they stop it."""

    max_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Of the records of a source."""
    max_files: Annotated[int, Field(ge=0)] = 10
    """Files that could not be read to their end."""


class Identifiers(Section):
    """Scan for the identifiers of people that HIPAA's Safe Harbor rule lists (45 CFR 164.514(b)(2))."""

    max_per_document: Annotated[int, Field(ge=0)]
    """A document with more findings is quarantined."""
    max_quarantined_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Of the documents of a source; when more are quarantined the run stops, because the source is not what it is taken for."""
    names: bool = False
    """Also look for names of people and places with presidio (the extra `deidentify`)."""


class Clean(Section):
    """Rules that every document must pass."""

    min_chars: Positive
    """Shorter documents are dropped, in characters after cleaning."""
    off: tuple[str, ...] = ()
    """Steps of medschool.corpus.steps that are left out, by name; all run when empty."""
    languages: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")], ...] | None = None
    """Languages to keep, as ISO 639-1 codes, by what the text looks like; every language when left out."""
    quality: tuple[Literal["gopher", "c4", "fineweb"], ...] = ()
    """Quality filters with their published thresholds, in this order."""
    bad_files: BadFiles = BadFiles()
    identifiers: Identifiers | None = None
    """Scan for identifiers of people; none when left out."""


class NearDuplicates(Section):
    """Removal of near-duplicates, over all sources together: MinHash with banding (Broder 1997; Leskovec et al., chapter 3)."""

    similarity: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Jaccard similarity of two documents' word n-grams from which one of them goes."""
    permutations: Positive = 128
    ngram_words: Positive = 5


class Canaries(Section):
    """Invented sentences that are put into one source, to measure later what a model repeats by heart (Carlini et al. 2019)."""

    source: Name
    count: Positive
    """Different sentences."""
    repeats: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 4, 16)
    """How often they stand in the source: the sentences are dealt to these numbers in turn."""


class Tokens(Section):
    """From documents to rows of tokens."""

    row_tokens: Positive
    """Length of a training row, in tokens (the paper's context is 2048)."""
    packing: Literal["concatenate", "best_fit", "windows"] = "concatenate"
    """`concatenate` cuts a stream of documents, `best_fit` keeps short ones whole, `windows` is the paper's released code."""
    rows_per_shard: Positive = 4096
    """Rows in one stored file; 4096 rows of 2048 uint16 tokens are 16 MiB."""
    heldout_tokens: Positive
    """Tokens of whole documents that are kept out of training for measurement, at most, for each source."""
    heldout_document_tokens: Positive
    """A held-out document is scored on its first so many tokens."""


class Chats(Section):
    """From conversations to rows of tokens."""

    row_tokens: Positive
    """Length of a row, in tokens. Whole conversations are packed into it."""
    rows_per_shard: Positive = 4096
    template: Literal["model", "pmc_llama"] = "model"
    """The prompt template of tuning, exams and serving: the model's own chat template, or the one PMC-LLaMA was tuned with."""
    trained_turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are trained."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What becomes of a conversation longer than a row; `truncate` cuts the oldest context away and keeps the last answer."""


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
    """Low-rank adapters instead of all weights (Hu et al. 2021); merged into the weights when the model is exported."""

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
    max_repeats: dict[Name, Annotated[float, Field(gt=0)]] = {}
    """How often a source or set may be seen, in passes over it; a variant that would need more is refused by the plan."""


class Tuning(Training):
    """The phase `instruct`: training on conversations."""

    neftune_alpha: Annotated[float, Field(gt=0)] | None = None
    """Strength of the noise on the embeddings (NEFTune, Jain et al. 2023, who take 5, 10 and 15); none when left out."""


Weights = Annotated[dict[Name, Annotated[int, Field(gt=0)]], Field(min_length=1)]
"""Parts of each source or set in every batch, by name: `{books: 15, papers: 4, general: 1}`. Order means nothing."""


class Variant(Section):
    """One model of the comparison. Without weights and instructions it is the base model, untouched."""

    weights: Weights | None = None
    """Knowledge injection: parts of each source in every batch of `pretrain`."""
    weights_from: dict[Annotated[int, Field(gt=0)], Weights] = {}
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


class Shots(Section):
    """Worked questions that stand before each question of an exam."""

    files: Annotated[tuple[Files, ...], Field(min_length=1)]
    """As those of the exam; MMLU's `dev` files. A question of the exam itself is refused."""
    count: Positive
    """How many, the first of the files; for MMLU the first of each subject."""


class Exam(Section):
    """Multiple-choice items that are never trained on."""

    files: Annotated[tuple[Files, ...], Field(min_length=1)]
    """`format` is a reader of medschool.exams.formats, such as `mmlu`."""
    subjects: tuple[str, ...] | None = None
    """Only these subjects; all when left out."""
    ids: str | None = None
    """File of the ids to keep, by which PubMedQA publishes its official 500: `test_ground_truth.json`, or one id a line."""
    published: str | None = None
    """The published exam that the files hold, a name of medschool.exams.published: another size is refused."""
    protocol: Literal["letters", "lm_eval", "chain_of_thought"] = "letters"
    """How an option is chosen: `letters`, by its letter as an answer in a conversation; `lm_eval`, as that harness does;
    `chain_of_thought`, by what the model writes after reasons of its own."""
    thought_tokens: Positive | None = None
    """Longest answer with its reasons, in tokens, under `chain_of_thought` alone; the paper's script allows any answer 1,000."""
    shots: Shots | None = None
    """Worked questions, under the protocol `lm_eval` alone; none when left out."""
    items: Positive | None = None
    """A sample of so many items, drawn once by the recipe's seed; all when left out."""
    generated_items: Annotated[int, Field(ge=0)] = 0
    """Of those, so many are also answered in words, to count the answers that cannot be read."""


class FromCorpus(Section):
    """Conversations made from the documents of a source of this recipe, as the corpus stage cleaned and licensed them."""

    source: Name
    format: str
    """A maker of medschool.instructions.from_corpus: `reading_comprehension` or `conclusion`."""
    passage_words: Positive
    """Longest text that a question is asked about, in words; with the question it must fit into `chats.row_tokens`.

    An English medical word is 1.5 to 2 tokens of LLaMA's vocabulary.
    """


class Instructions(Section):
    """One named set of conversations, from raw files or from a source of this recipe.

    A set of general instructions beside the medical ones (replay, against forgetting) is a set like any other: its share of every
    batch is its weight in `variants.<name>.instructions`.
    """

    files: tuple[Files, ...] = ()
    """`format` is a maker of medschool.instructions.formats, such as `mmlu` or `hpo_graph`."""
    from_corpus: FromCorpus | None = None
    """In place of `files`."""
    licences: Annotated[tuple[str, ...], Field(min_length=1)]
    """Licence groups that may be trained on; a conversation with any other is dropped and counted."""
    subjects: tuple[str, ...] | None = None
    """Only these subjects, where the format has any; all when left out."""
    conversations: Positive | None = None
    """A sample of so many conversations, drawn once by the recipe's seed; all when left out."""
    ask: Literal["rationale_general", "rationale_options", "paraphrase"] | None = None
    """What the recipe's teacher is asked to add: reasons for exam questions by one of the paper's two prompts, or other
    wordings of the instructions."""
    bad_files: BadFiles = BadFiles()
    """How much of the set may be malformed or unreadable before the run stops."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.files) == (self.from_corpus is not None):
            raise ValueError("give exactly one of `files`, with one entry at least, and `from_corpus`")
        if self.from_corpus and self.subjects is not None:
            raise ValueError("subjects: a source has none; leave it out, or make the set from `files`")
        if self.from_corpus and self.ask in ("rationale_general", "rationale_options"):
            raise ValueError(f"ask: {self.ask} needs exam questions, which no source has; use `files`, or `ask: paraphrase`")
        return self


class Teacher(Section):
    """A model behind an OpenAI-compatible endpoint that writes what no file holds. Its key comes from MEDSCHOOL_TEACHER_KEY."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://")]
    """Base URL, such as `http://127.0.0.1:8000/v1`."""
    model: str
    temperature: Annotated[float, Field(ge=0)] = 0.7
    tries: Positive = 3
    """Answers asked for, one after the other, until one agrees with the key of the question."""
    max_answer_tokens: Positive = 512
    paraphrases: Positive = 10
    """Other wordings of each instruction."""
    concurrency: Positive = 8
    """Requests under way at once, over the whole stage."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Of one request."""
    budget_tokens: Positive
    """Tokens, prompts and answers together, after which the stage stops; what was answered is kept for the next run."""
    usd_per_million_prompt_tokens: Annotated[float, Field(ge=0)] = 0.0
    usd_per_million_answer_tokens: Annotated[float, Field(ge=0)] = 0.0


class Probes(Section):
    """Facts as a choice between endings: those that the first candidate of the gate was trained on, and twins that nobody saw."""

    items: Positive
    """Facts of each kind and training seed, and as many twins, at most."""
    candidates: Annotated[int, Field(ge=2, le=26)] = 4
    """Endings to choose from, the true one included."""


class Evaluate(Section):
    """How variants are measured."""

    bootstrap_resamples: Positive = 10_000
    """Resamples of the paired bootstrap over held-out documents."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    heldout_every_steps: Positive | None = None
    """Steps between two measurements of the held-out loss while training runs, beside it; none when left out.

    They are for people to look at: nothing that the run makes depends on them. They take one logical CPU of the cluster.
    """
    answer_tokens: Positive = 16
    """Longest answer in words, in tokens; 16 hold a direct answer, a rationale needs some 200."""
    smallest_accuracy_change: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Smallest difference of interest, as a share: 0.01 is a point. Sizes what `cannot tell` needs; by default the one seen."""
    smallest_perplexity_change: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The same of perplexity, relative: 0.02 is two per cent lower."""

    @property
    def scorers_beside(self) -> int:
        """Processes that score while the workers train."""
        return int(self.heldout_every_steps is not None)


class Gate(Section):
    """When a variant may be registered under the serving alias, and which one."""

    candidates: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Variants in order of preference: the first one that passes is registered."""
    control: Name
    """Variant they are compared with: trained on as many tokens as their knowledge injection has."""
    improves: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Sources whose held-out perplexity must fall against the control, beyond chance for all comparisons together."""
    keeps: tuple[Name, ...] = ()
    """Exams on which a candidate must not be worse than the control beyond chance."""


class Retention(Section):
    """What training must not have cost: each trained variant against an untrained one, by a test of non-inferiority.

    A candidate of the gate passes only when all of it is kept beyond doubt. The margins are conventions of this project, not
    taken from anywhere: set what your use can bear.
    """

    against: Name
    """The untrained variant that shows what was known."""
    sources: tuple[Name, ...] = ()
    """Sources of general text whose held-out perplexity may not rise by more than the margin."""
    exams: tuple[Name, ...] = ()
    """General exams, such as other subjects of MMLU, on which accuracy may not fall by more than the margin."""
    perplexity_margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Largest rise that is taken as none, relative: five per cent."""
    accuracy_margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Largest fall that is taken as none, as a share of the items: two points."""


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


class Budget(Section):
    """What the run is meant to cost; the report sets it against what was spent."""

    minutes: Annotated[float, Field(gt=0)]
    """Of all stages together, on this recipe's cluster."""


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
    def _replicas_fit(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is below min_replicas {self.min_replicas}; raise it")
        return self


class Cluster(Section):
    """Where and how wide the run is. Never part of a fingerprint: the same numbers come out on other hardware."""

    num_workers: Positive | tuple[Positive, Positive] = 2
    """Training workers. `[fewest, most]` goes on with any number between the two when nodes come and go."""
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
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
    """Compute the loss over so many tokens at a time, so that the logits of a whole micro-batch never exist at once."""
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
    usd_per_worker_hour: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Price of one training worker for an hour, by the node type that the report names: `{gpu_train: 2.5}`; for the report."""

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


class Recipe(Section):
    """One whole run."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,47}$")]
    seed: Annotated[int, Field(ge=0)]
    train_seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Each trained variant is trained once for each of these orders of the data; the recipe's seed alone when left out."""
    model: Model
    sources: Annotated[dict[Name, Source], Field(min_length=1)]
    clean: Clean
    near_duplicates: NearDuplicates | None = None
    canaries: Canaries | None = None
    tokens: Tokens
    pretrain: Training
    exams: dict[Name, Exam] = {}
    instructions: dict[Name, Instructions] = {}
    teacher: Teacher | None = None
    chats: Chats | None = None
    instruct: Tuning | None = None
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    probes: Probes | None = None
    evaluate: Evaluate = Evaluate()
    gate: Gate | None = None
    retention: Retention | None = None
    search: Search | None = None
    serve: Serve | None = None
    budget: Budget | None = None
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, spec in self.instructions.items():
            if spec.ask and self.teacher is None:
                raise ValueError(f"instructions.{name}.ask: there is no `teacher` in this recipe to ask")
            if spec.from_corpus:
                _known(f"instructions.{name}.from_corpus.source", spec.from_corpus.source, self.sources)
        if self.cluster.attention == "flash_attention_2" and self.model.dtype == "fp32":
            raise ValueError("cluster.attention: flash_attention_2 computes in bf16 only; set model.dtype: bf16 or another one")
        if len(set(self.train_seeds)) < len(self.train_seeds):
            raise ValueError("train_seeds: a seed is named twice; each one must differ")
        for name, variant in self.variants.items():
            for source in variant.weights or {}:
                _known(f"variants.{name}.weights", source, self.sources)
            if variant.weights_from and variant.weights is None:
                raise ValueError(f"variants.{name}.weights_from: needs `weights`, for the steps before it")
            for step, weights in variant.weights_from.items():
                for source in weights:
                    _known(f"variants.{name}.weights_from.{step}", source, self.sources)
            for source in variant.instructions or {}:
                _known(f"variants.{name}.instructions", source, self.instructions)
            if variant.instructions is not None and (self.chats is None or self.instruct is None):
                raise ValueError(f"variants.{name}.instructions: needs the sections `chats` and `instruct`")
        self._check_length("pretrain", self.pretrain, [variant.pretrained_on for variant in self.variants.values()], self.sources)
        if self.instruct is not None:
            tuned = [{*(variant.instructions or {})} for variant in self.variants.values()]
            self._check_length("instruct", self.instruct, tuned, self.instructions)
        self._check_gate()
        self._check_retention()
        if self.probes is not None and (self.gate is None or self.variants[self.gate.candidates[0]].weights is None):
            raise ValueError("probes: need a `gate` whose first candidate has weights; they are made from its training text")
        for name, exam in self.exams.items():
            if exam.shots is not None and exam.protocol != "lm_eval":
                raise ValueError(f"exams.{name}.shots: only the protocol `lm_eval` has worked questions; set protocol: lm_eval")
            if (exam.thought_tokens is not None) != (exam.protocol == "chain_of_thought"):
                raise ValueError(f"exams.{name}.thought_tokens: belongs to protocol: chain_of_thought; give both, or neither")
            if exam.protocol == "chain_of_thought" and exam.generated_items:
                raise ValueError(f"exams.{name}.generated_items: a chain of thought is in words for every item; leave it out")
            if exam.items is not None and exam.generated_items > exam.items:
                raise ValueError(f"exams.{name}.generated_items: is {exam.generated_items}, the sample has {exam.items} items")
        if self.serve is not None and self.gate is None:
            raise ValueError("serve: needs a `gate`, which decides the variant that is registered and served")
        if self.search is not None:
            _known("search.variant", self.search.variant, self.variants)
            if self.variants[self.search.variant].weights is None:
                raise ValueError(f"search.variant: {self.search.variant!r} has no weights; name one that is pretrained")
        return self

    def _check_length(self, phase: str, spec: Training, trained_on: list[set[str]], known: Mapping[str, Section]) -> None:
        for name in spec.max_repeats:
            _known(f"{phase}.max_repeats", name, known)
        counted = spec.length.epochs_of
        if counted is not None:
            _known(f"{phase}.length.epochs_of", counted, known)
            if not any(counted in names for names in trained_on):
                raise ValueError(f"{phase}.length.epochs_of: no variant trains on {counted!r}")

    def _check_gate(self) -> None:
        if self.gate is None:
            return
        for key, names in (("candidates", self.gate.candidates), ("control", (self.gate.control,))):
            for name in names:
                _known(f"gate.{key}", name, self.variants)
                if not self.variants[name].trains:
                    raise ValueError(f"gate.{key}: {name!r} has no weights and no instructions; name a trained variant")
        for source in self.gate.improves:
            _known("gate.improves", source, self.sources)
        for exam in self.gate.keeps:
            _known("gate.keeps", exam, self.exams)
        if self.gate.control in self.gate.candidates:
            raise ValueError("gate.control: is a candidate itself; name another variant")

    def _check_retention(self) -> None:
        spec = self.retention
        if spec is None:
            return
        _known("retention.against", spec.against, self.variants)
        if self.variants[spec.against].trains:
            raise ValueError(f"retention.against: {spec.against!r} is trained; name a variant without weights and instructions")
        for key, names, known in (("sources", spec.sources, self.sources), ("exams", spec.exams, self.exams)):
            for name in names:
                _known(f"retention.{key}", name, known)
        if not spec.sources and not spec.exams:
            raise ValueError("retention: names nothing to keep; give `sources`, `exams` or both")


def _known(key: str, name: str, known: Mapping[str, Section]) -> None:
    if name not in known:
        raise ValueError(f"{key}: {name!r} is not one of {', '.join(known) or 'none: the section is empty'}")

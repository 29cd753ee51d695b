"""The recipe's sections about measuring: exams, probes, statistics, and the gate before serving."""

from typing import Annotated, Literal

from pydantic import Field

from medschool.recipe.corpus import Files
from medschool.recipe.section import Name, Positive, Section


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

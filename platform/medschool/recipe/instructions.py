"""The recipe's sections about conversations: their sets, the teacher that adds to them, and their rows of tokens."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from medschool.recipe.corpus import BadFiles, Files
from medschool.recipe.section import Name, Positive, Section


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

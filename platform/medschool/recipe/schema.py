"""What a recipe may say: types, units, ranges, and what must fit together.

What defines the science (sources, weights, base model, lengths, learning rate) has no default. Defaults exist for mechanics only.
Every section is hashed into the fingerprints of the stages that read it (medschool.procedure); `name` and `cluster` never are.
"""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from medschool.recipe.cluster import Cluster
from medschool.recipe.corpus import Canaries, Clean, NearDuplicates, Source, Tokens
from medschool.recipe.evaluation import Evaluate, Exam, Gate, Probes, Retention
from medschool.recipe.instructions import Chats, Instructions, Teacher
from medschool.recipe.section import Name, Section
from medschool.recipe.serving import Serve
from medschool.recipe.training import Model, Search, Training, Tuning, Variant


class Budget(Section):
    """What the run is meant to cost; the report sets it against what was spent."""

    minutes: Annotated[float, Field(gt=0)]
    """Of all stages together, on this recipe's cluster."""


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
    exams: dict[Name, Exam] = Field(default_factory=dict)
    instructions: dict[Name, Instructions] = Field(default_factory=dict)
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

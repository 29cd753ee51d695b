"""What must be there before a model may be called by the alias that is served, and the card that goes with it.

    verdict + finished stages --checks--> one line each: there and good, or what is missing --card--> Markdown for whoever uses it

    gate            the variant is a candidate of the recipe's gate and passes it
    exams           at least one, scored by the trial that is registered
    retention       the recipe says what must be kept, and all of it is kept
    contamination   every exam was looked for in every source that any variant trains on, and in its conversations
    mask            the conversations it was tuned on keep the contract of masks (medschool.instructions.contract)
    export          plain transformers loaded the files and said what the trained model says (medschool.train.proof)

Nothing here judges whether a model may be used on patients. It may not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medschool.ablate.exam_table import exam_rows
from medschool.ablate.markdown import escaped
from medschool.ablate.markdown import table as rows_of
from medschool.ablate.wording import change_text, interval_text, margin_text, word_text
from medschool.artifact import Artifact
from medschool.errors import RecipeError
from medschool.ledger import LEDGER
from medschool.procedure import Trial, checkpoint_stage, phase_sources, recipe_digest, trials, withheld_sources
from medschool.recipe import Recipe

Find = Callable[[str], Artifact]
"""The finished artifact of a stage, by the stage's name; raises StageError for one that is not finished."""


@dataclass(frozen=True)
class Check:
    """One thing that must be there."""

    name: str
    ok: bool
    said: str
    """What was found, or what is missing and how to get it."""


@dataclass(frozen=True)
class Candidate:
    """A trial that somebody wants to promote, and what is known of it."""

    recipe: Recipe
    verdict: dict[str, Any]
    trial: Trial
    find: Find

    @property
    def checkpoint(self) -> Artifact:
        return self.find(checkpoint_stage(self.recipe, self.trial))

    @property
    def scores(self) -> dict[str, Any]:
        """Its entry in the verdict."""
        found: dict[str, Any] = next(one for one in self.verdict["trials"] if one["name"] == self.trial.name)
        return found

    @property
    def retention(self) -> list[dict[str, Any]]:
        return [entry for entry in self.verdict["retention"] if entry["variant"] == self.trial.variant]


def candidate(recipe: Recipe, verdict: dict[str, Any], find: Find, variant: str | None) -> Candidate:
    """The trial of a variant that the gate would register; the gate's winner, or its first candidate, when none is named.

    Raises RecipeError when the recipe has no gate, or the variant is not one of its candidates.
    """
    if recipe.gate is None:
        raise RecipeError(
            "the recipe has no gate, so nothing in it can be promoted", "give it `gate` and run it again", recipe.name
        )
    known = verdict["gate"]["candidates"]
    name = variant or verdict["gate"]["winner"] or recipe.gate.candidates[0]
    if name not in known:
        raise RecipeError(f"{name!r} is no candidate of the gate", f"name one of {', '.join(known)}", "--variant")
    return Candidate(recipe, verdict, next(one for one in trials(recipe) if one.name == known[name]["trial"]), find)


def checks(one: Candidate) -> list[Check]:
    """Every check, passed or not, in the order of the table above."""
    gate = one.verdict["gate"]
    judged = gate["candidates"][one.trial.variant]
    return [
        Check("gate", judged["passed"], judged["reason"] if gate["passed"] else gate["reason"]),
        _exams(one),
        _retention(one),
        _contamination(one),
        _mask(one),
        _export(one),
    ]


def _exams(one: Candidate) -> Check:
    scored = one.scores["exams"]
    lacking = [name for name in one.recipe.exams if name not in scored]
    if not one.recipe.exams or lacking:
        missing = f"no score of {', '.join(lacking)}" if lacking else "the recipe has no `exams`"
        return Check("exams", False, f"{missing}; add them and evaluate again")
    told = (f"{name} {100 * exam['accuracy']:.1f}% of {exam['items']:,}" for name, exam in scored.items())
    return Check("exams", True, ", ".join(told))


def _retention(one: Candidate) -> Check:
    if one.recipe.retention is None:
        return Check("retention", False, "the recipe does not say what must be kept; give it `retention`")
    if not one.retention:
        return Check("retention", False, f"nothing compares {one.trial.variant} with {one.recipe.retention.against}")
    told = ", ".join(
        f"{entry['on']} {change_text(entry['measure'], entry['change'])} ({entry['word']})" for entry in one.retention
    )
    return Check("retention", all(entry["word"] == "kept" for entry in one.retention), told)


def _contamination(one: Candidate) -> Check:
    known = {(found["exam"], found["source"]): found for found in one.verdict["contamination"]}
    asked = [(exam, source) for exam in one.recipe.exams for source in withheld_sources(one.recipe)]
    missing = [f"{exam} in {source}" for exam, source in asked if (exam, source) not in known]
    sets = phase_sources(one.recipe, one.trial.variant, "instruct")
    missing += [f"exams in {name}" for name in sets if not one.find(f"instructions/{name}").facts.get("overlap")]
    if not one.recipe.exams or missing:
        lacking = ", ".join(missing) or "the recipe has no `exams` to look for"
        return Check("contamination", False, f"not looked for: {lacking}; run the stages overlap and withheld")
    rows = sum(found["rows"] for found in known.values())
    return Check(
        "contamination", True, f"{len(asked)} pairs of exam and source and {len(sets)} sets checked, {rows:,} rows withheld"
    )


def _mask(one: Candidate) -> Check:
    sets = phase_sources(one.recipe, one.trial.variant, "instruct")
    if not sets:
        return Check("mask", True, "it was not tuned on conversations")
    lacking = [name for name in sets if not one.find(f"chats/{name}").facts.get("contract")]
    if lacking:
        return Check("mask", False, f"chats/{lacking[0]} was made before the contract was checked; make it again")
    trained = sum(one.find(f"chats/{name}").facts["contract"]["trained_tokens"] for name in sets)
    return Check("mask", True, f"{len(sets)} sets keep it, {trained:,} trained tokens")


def _export(one: Candidate) -> Check:
    from medschool.train.proof import MOST_DIFFERENCE

    proof, most = one.checkpoint.facts.get("proof"), MOST_DIFFERENCE[one.recipe.model.dtype]
    if not proof:
        return Check("export", False, "its export was never compared with the trained model; train it again")
    found = proof["largest_logit_difference"]
    said = f"largest difference of logits {found:.1e} at {proof['positions']:,} positions, less than {most:g} is allowed"
    return Check("export", found < most, said)


# ---- the card -----------------------------------------------------------------------------------------------------------------


def card(one: Candidate, made: Sequence[Check]) -> str:
    """The model card: what it is for, what it knows, what it learned from, and where each number comes from."""
    recipe, gate = one.recipe, one.recipe.gate
    assert gate is not None
    name, checkpoint = one.trial.name, one.checkpoint
    ledger = next((file.sha256 for file in checkpoint.files if file.path == LEDGER), "none")
    parts = [
        "---\ntags: [medical]\npipeline_tag: text-generation\nlicense: other\n---",
        f"# {escaped(recipe.name)}: {escaped(name)}",
        "**Not for clinical use.** Its answers can be wrong in ways that harm.",
        "## Intended use",
        "Research on medical language models: answering exam questions and texts like those it was measured on. Not for "
        "diagnosis, treatment, triage, or advice to patients, by itself or as a part of something else. It was measured on "
        "multiple-choice questions and the likelihood of text alone; safety, bias and behaviour in conversation were not.",
        "## Exams",
        "\n".join(rows_of(_exam_rows(one))),
        f"Intervals are of {100 * one.verdict['confidence']:g}%. Clean items are those that no document of the corpus "
        "and no conversation of the instructions holds. A hash stands for all that decides a score beside the model: compare "
        "scores with the same hash alone.",
        "## What the training changed",
        f"Against {escaped(gate.control)}, which trained as long on other text. Words are corrected for all "
        f"{one.verdict['family']['comparisons']} comparisons of the study.",
        "\n".join(rows_of(_change_rows(one))),
    ]
    if one.retention:
        parts += ["## What it kept", "\n".join(rows_of(_kept_rows(one)))]
    parts += [
        "## What it learned from",
        "\n".join(rows_of(_licence_rows(one))),
        f"The licence of the base model, {escaped(recipe.model.uri)}, holds as well.",
        "## Proof",
        "\n".join(f"- {check.name}: {escaped(check.said)}" for check in made),
        f"- recipe `{recipe_digest(recipe)}`, checkpoint `{checkpoint.digest}`\n- ledger of every batch (sha256) `{ledger}`",
    ]
    return "\n\n".join(parts) + "\n"


def _exam_rows(one: Candidate) -> list[list[str]]:
    """As in the report, without the variant: the card is of one."""
    return [row[1:] for row in exam_rows([one.scores])]


def _change_rows(one: Candidate) -> list[list[str]]:
    assert one.recipe.gate is not None
    mine = (one.trial.variant, one.recipe.gate.control)
    return [
        ["measure", "on", "change", "interval", "word"],
        *(
            [
                effect["measure"], effect["on"], change_text(effect["measure"], effect["change"]),
                interval_text(effect["measure"], effect["low"], effect["high"]), word_text(effect),
            ]
            for effect in one.verdict["effects"]
            if (effect["variant"], effect["reference"]) == mine
        ),
    ]  # fmt: skip


def _kept_rows(one: Candidate) -> list[list[str]]:
    return [
        ["measure", "on", "change", "interval", "margin", "word"],
        *(
            [
                entry["measure"], entry["on"], change_text(entry["measure"], entry["change"]),
                interval_text(entry["measure"], entry["low"], entry["high"]), margin_text(entry["measure"], entry["margin"]),
                entry["word"],
            ]
            for entry in one.retention
        ),
    ]  # fmt: skip


def _licence_rows(one: Candidate) -> list[list[str]]:
    rows = [["source or set", "licence", "documents or conversations"]]
    for phase, kind in (("pretrain", "corpus"), ("instruct", "instructions")):
        for name in phase_sources(one.recipe, one.trial.variant, "pretrain" if phase == "pretrain" else "instruct"):
            found = one.find(f"{kind}/{name}").facts.get("licences", {})
            rows += [[name, licence, f"{count:,}"] for licence, count in sorted(found.items())]
    return rows

"""What the user reads at the end of a run, as plain text: the variants, what they cost, and what each component changed.

Every number is one of the verdict's JSON (medschool.ablate.compare), formatted; so are the metrics that MLflow gets.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medschool.ablate.compare import main_probes
from medschool.ablate.cost import cost_tables
from medschool.ablate.exam_table import PUBLISHED_TITLE, exam_rows, published_rows
from medschool.ablate.gain import Gain
from medschool.ablate.wording import change_text, gain_text, interval_text, margin_text, p_text
from medschool.ablate.written import written_rows
from medschool.recipe import Recipe

SMALL = 1_000_000
"""Training tokens under which the report says that a run shows the mechanism, not competence."""

WIDTH = 130
"""Characters of the longest line of words; tables are as wide as their names make them."""


@dataclass(frozen=True)
class Spent:
    """What the training of one trial took, all phases together."""

    trained_tokens: int
    minutes: float


def table(recipe: Recipe, verdict: dict[str, Any], spent: Mapping[str, Spent], gains: Sequence[Gain] = ()) -> str:
    """The report. `spent` by trial; a trained one whose cost is not known is shown with dashes."""
    lines = []
    for title, rows in sections(recipe, verdict, spent, gains):
        lines += ["", title, "", *columns(rows)]
    for text in closing(verdict, spent):
        lines += textwrap.wrap(text, WIDTH, break_on_hyphens=False) or [""]
    return "\n".join([*lines, ""])


def sections(
    recipe: Recipe, verdict: dict[str, Any], spent: Mapping[str, Spent], gains: Sequence[Gain], theirs: bool = False
) -> list[tuple[str, list[list[str]]]]:
    """(title, rows with a header) of every table that has more than its header: the others the recipe does not ask for.

    theirs: with what others have published for the recipe's exams, below our own.
    """
    level, probes = f"{100 * verdict['confidence']:.0f}%", main_probes(recipe.gate, verdict["probes"])
    found = {
        "Held-out perplexity (lower is better)": _perplexities(recipe, verdict["trials"], spent),
        f"Exams, accuracy with {level} interval (higher is better)": exam_rows(verdict["trials"]),
        PUBLISHED_TITLE: published_rows(recipe) if theirs else [],
        f"Exams answered in words, share that can be read with {level} interval": written_rows(verdict["trials"]),
        f"Changes on the same documents and items, {level} interval, decided by the p adjusted for all of them (Holm)": _effects(
            verdict["effects"]
        ),
        f"Forgetting: change against the untrained model, {level} interval, and the margin that it may not pass": _retention(
            verdict["retention"]
        ),
        **cost_tables(verdict.get("cost")),
        "Gain an hour of training, of changes that were told": _gains(gains),
        f"Facts right, change in points with {level} interval (* beyond chance, each by itself)": _facts(probes),
        f"Likelihood of facts, gain in nats per token with {level} interval (* beyond chance, each by itself)": _likelihoods(
            probes
        ),
    }
    return [(title, rows) for title, rows in found.items() if len(rows) > 1]


def closing(verdict: dict[str, Any], spent: Mapping[str, Spent]) -> list[str]:
    """The sentences below the tables: what decided, the gate, and what the numbers are not."""
    gate, trained = verdict["gate"], max((cost.trained_tokens for cost in spent.values()), default=0)
    said = ["", *notes(verdict), f"Gate: {'passed' if gate['passed'] else 'not passed'}. {gate['reason']}"]
    if trained < SMALL:
        said += [
            f"With {trained:,} training tokens at most this shows that the procedure works, not that the model knows medicine."
        ]
    return [*said, "Not for clinical use."]


def notes(verdict: dict[str, Any]) -> list[str]:
    """What a reader of the words must know: the family, what `needs` means, and what one seed cannot tell."""
    effects, family = verdict["effects"], verdict["family"]
    said = []
    if any(exam.get("uncontaminated") for trial in verdict["trials"] for exam in trial["exams"].values()):
        said += ["Clean items are those that no document of the corpus and no conversation of the instructions holds."]
    if effects:
        said += [
            f"Words: {family['comparisons']} comparisons, at most {100 * family['level']:g}% chance that any word is wrong. "
            "Intervals are those of each comparison alone."
        ]
    if any(effect["needs"] for effect in effects):
        said += [f"To tell: what shows the change seen, or the recipe's smallest of interest, {family['power']:.0%} of the time."]
    if any(effect["seeds"] == 1 for effect in effects):
        said += ["One training seed: a word is about these two models; another order of the data may say another."]
    return said


def _perplexities(recipe: Recipe, trials: list[dict[str, Any]], spent: Mapping[str, Spent]) -> list[list[str]]:
    rows = [["variant", *recipe.sources, "trained tokens", "minutes"]]
    for trial in trials:
        cost = spent.get(trial["name"], Spent(0, 0.0) if trial["seed"] is None else None)
        values = [f"{trial['perplexity'][source]['value']:.2f}" for source in recipe.sources]
        rows.append([trial["name"], *values, *([f"{cost.trained_tokens:,}", f"{cost.minutes:.1f}"] if cost else ["-", "-"])])
    return rows


def _effects(effects: list[dict[str, Any]]) -> list[list[str]]:
    seeded = any(effect["seeds"] > 1 for effect in effects)
    head = ["comparison", "measure", "on", "n", "change", "interval", "p", "adj. p"]
    rows = [[*head, *(["by seed"] if seeded else []), "verdict", "to tell"]]
    for e in effects:
        measure = e["measure"]
        by_seed = " ".join(change_text(measure, value).removesuffix(" pts") for value in e["by_seed"].values())
        change = [change_text(measure, e["change"]), interval_text(measure, e["low"], e["high"]), p_text(e["p"])]
        decided = [p_text(e["p_adjusted"]), *([by_seed] if seeded else []), e["word"], _to_tell(e["needs"])]
        rows.append([_names(e), measure, e["on"], f"{e['n']:,}", *change, *decided])
    return rows


def _retention(retention: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["comparison", "measure", "on", "n", "change", "interval", "margin", "verdict", "to tell"]]
    for e in retention:
        change = [change_text(e["measure"], e["change"]), interval_text(e["measure"], e["low"], e["high"])]
        decided = [margin_text(e["measure"], e["margin"]), e["word"], _to_tell(e["needs"])]
        rows.append([_names(e), e["measure"], e["on"], f"{e['n']:,}", *change, *decided])
    return rows


def _to_tell(needs: dict[str, Any] | None) -> str:
    """`n 1,300 or 5 seeds`, `n 1,300`, `never` where no number would do, '' where there is nothing to say."""
    if needs is None:
        return ""
    forms = {"items": "n {:,}", "seeds": "{:,} seeds"}
    return " or ".join(form.format(needs[key]) for key, form in forms.items() if needs[key] is not None) or "never"


def _gains(gains: Sequence[Gain]) -> list[list[str]]:
    on_gpus = any(gain.accelerator_hours for gain in gains)
    rows = [["comparison", "measure", "on", "change", "accelerator-hours" if on_gpus else "worker-hours", "gain an hour"]]
    for gain in gains:
        change = change_text(gain.measure, gain.change)
        rows.append(
            [
                f"{gain.variant} - {gain.reference}",
                gain.measure,
                gain.on,
                change,
                f"{gain.hours:.3g}",
                gain_text(gain.measure, gain.per_hour),
            ]
        )
    return rows


def _facts(probes: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["comparison", "kind", "trained", "twins", "already knew", "learned", "generalised"]]
    for probe in probes:
        knew = "-" if probe["already_knew"] is None else f"{100 * probe['already_knew']:.0f}%"
        changes = [_points(probe["learned"]), _points(probe["generalised"])]
        rows.append([_names(probe), probe["kind"], str(probe["items"]), str(probe["twins"]), knew, *changes])
    return rows


def _likelihoods(probes: list[dict[str, Any]]) -> list[list[str]]:
    parts = ("learned", "generalised", "specific")
    return [
        ["comparison", "kind", *parts],
        *([_names(probe), probe["kind"], *(_nats(probe["likelihood"][part]) for part in parts)] for probe in probes),
    ]


def _names(pair: dict[str, Any]) -> str:
    return f"{pair['variant']} - {pair['reference']}"


def _points(gain: dict[str, Any]) -> str:
    change = change_text("accuracy", gain["change"]).removesuffix(" pts")
    return f"{change} {interval_text('accuracy', gain['low'], gain['high'])} {_mark(gain)}"


def _nats(gain: dict[str, Any]) -> str:
    if gain["change"] is None:
        return "-  "
    interval = "no interval" if gain["low"] is None else f"[{gain['low']:+.2f}, {gain['high']:+.2f}]"
    return f"{gain['change']:+.2f} {interval} {_mark(gain)}"


def _mark(gain: dict[str, Any]) -> str:
    return " " if gain["word"] == "cannot tell" else "*"


def columns(rows: Sequence[list[str]]) -> list[str]:
    """Rows as text columns: the first left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def mlflow_metrics(verdict: dict[str, Any], trial_name: str) -> dict[str, float]:
    """The scores of one trial by flat names. Shares are fractions. Raises KeyError when the verdict does not know the trial.

    perplexity_<source>   accuracy_<exam>   unparsed_<exam>   probe_trained_<kind>   probe_twins_<kind>, `_` for `/` in kinds
    """
    trial = {trial["name"]: trial for trial in verdict["trials"]}[trial_name]
    found = {f"perplexity_{source}": score["value"] for source, score in trial["perplexity"].items()}
    for name, exam in trial["exams"].items():
        found[f"accuracy_{name}"] = exam["accuracy"]
        if exam["written"]:
            found[f"unparsed_{name}"] = exam["written"]["unparsed"] / exam["written"]["items"]
    for kind, sets in trial["probes"].items():
        for name, score in sets.items():
            if score["items"]:
                found[f"probe_{name}_{kind.replace('/', '_')}"] = score["correct"] / score["items"]
    return found

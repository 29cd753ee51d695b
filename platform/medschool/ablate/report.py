"""What the user reads at the end of a run, as plain text: the variants, what they cost, and what each component changed.

Every number is one of the verdict's JSON (medschool.ablate.compare), formatted; so are the metrics that MLflow gets.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medschool.ablate.compare import change_text, interval_text, main_probes
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


def table(recipe: Recipe, verdict: dict[str, Any], spent: Mapping[str, Spent]) -> str:
    """The report. `spent` by trial; a trained one whose cost is not known is shown with dashes."""
    level = f"{100 * verdict['confidence']:.0f}%"
    gate, probes = verdict["gate"], main_probes(recipe.gate, verdict["probes"])
    lines = [
        *_section("Held-out perplexity (lower is better)", _perplexities(recipe, verdict["trials"], spent)),
        *_section(f"Exams, accuracy with {level} interval (higher is better)", _exams(verdict["trials"])),
        *_section(
            f"Changes on the same documents and items, {level} interval (accuracy is decided by p)", _effects(verdict["effects"])
        ),
        *_section(f"Facts right, change in points with {level} interval (* beyond chance)", _facts(probes)),
        *_section(
            f"Likelihood of facts, gain in nats per token with {level} interval (* beyond chance)",
            _likelihoods(probes),
        ),
        "",
        *textwrap.wrap(f"Gate: {'passed' if gate['passed'] else 'not passed'}. {gate['reason']}", WIDTH, break_on_hyphens=False),
    ]
    trained = max((cost.trained_tokens for cost in spent.values()), default=0)
    if trained < SMALL:
        lines += [
            f"With {trained:,} training tokens at most this shows that the procedure works, not that the model knows medicine."
        ]
    return "\n".join([*lines, "Not for clinical use.", ""])


def _section(title: str, rows: Sequence[list[str]]) -> list[str]:
    """Nothing for a table that has only its header: the recipe does not ask for it."""
    return ["", title, "", *columns(rows)] if len(rows) > 1 else []


def _perplexities(recipe: Recipe, trials: list[dict[str, Any]], spent: Mapping[str, Spent]) -> list[list[str]]:
    rows = [["variant", *recipe.sources, "trained tokens", "minutes"]]
    for trial in trials:
        cost = spent.get(trial["name"], Spent(0, 0.0) if trial["seed"] is None else None)
        values = [f"{trial['perplexity'][source]['value']:.2f}" for source in recipe.sources]
        rows.append([trial["name"], *values, *([f"{cost.trained_tokens:,}", f"{cost.minutes:.1f}"] if cost else ["-", "-"])])
    return rows


def _exams(trials: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["variant", "exam", "items", "accuracy", "written answers unparsed"]]
    for trial in trials:
        for name, exam in trial["exams"].items():
            written = exam["written"]
            unparsed = f"{written['unparsed'] / written['items']:.0%} of {written['items']:,}" if written else "-"
            accuracy = f"{100 * exam['accuracy']:.1f}% [{100 * exam['low']:.1f}, {100 * exam['high']:.1f}]"
            rows.append([trial["name"], name, f"{exam['items']:,}", accuracy, unparsed])
    return rows


def _effects(effects: list[dict[str, Any]]) -> list[list[str]]:
    seeded = any(effect["seeds"] > 1 for effect in effects)
    rows = [["comparison", "measure", "on", "n", "change", "interval", "p", *(["by seed"] if seeded else []), "verdict"]]
    for e in effects:
        measure, by_seed = (
            e["measure"],
            " ".join(change_text(e["measure"], value).removesuffix(" pts") for value in e["by_seed"].values()),
        )
        change = [change_text(measure, e["change"]), interval_text(measure, e["low"], e["high"]), _p(e["p"])]
        rows.append([_names(e), measure, e["on"], f"{e['n']:,}", *change, *([by_seed] if seeded else []), e["word"]])
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


def _p(value: float | None) -> str:
    """`0.61`, `0.041`, `<0.001`"""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


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

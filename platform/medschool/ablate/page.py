"""The report of a run as one HTML file: what went in, what it cost, what it changed, and how to do it again.

    verdict.json + journals + manifests --Report--> render --> report.html      (page.html.j2 holds the words and the order)

The file stands alone: no script, font, image or style is fetched, so it opens from a mail, a store or a locked-down hospital
computer, today and in ten years. The numbers are those of the verdict's JSON, which is in the page for machines as well:

    json.loads(lxml.html.parse("report.html").getroot().get_element_by_id("results").text)

A part that the recipe does not have (exams, probes, instructions, a budget) leaves no heading. The same report gives the same
bytes. Everything from outside is escaped; what is not a finite number is shown as a dash and is null in the JSON.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from medschool.ablate import plots
from medschool.ablate.compare import main_probes
from medschool.ablate.cost import cost_tables
from medschool.ablate.exam_table import HEADINGS, PUBLISHED_NOTE, PUBLISHED_TITLE, exam_rows
from medschool.ablate.gain import Gain
from medschool.ablate.over_time import node_rows, picture
from medschool.ablate.report import SMALL, Spent
from medschool.ablate.wording import change_text, gain_text, interval_text, margin_text, needs_text, p_text
from medschool.ablate.written import written_rows
from medschool.cluster.timeline import Timeline
from medschool.procedure import PHASES, Phase
from medschool.recipe.evaluation import Gate

TEMPLATE = "page.html.j2"
NONE = "-"


@dataclass(frozen=True)
class Curve:
    """Loss and learning rate of one phase of one trial, one value for each of `steps`."""

    trial: str
    phase: Phase
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    """Mean loss of the batch, in nats per target."""
    lr: tuple[float, ...]


@dataclass(frozen=True)
class Mixture:
    """What one phase of one trial was planned to read and did read, by source or set of instructions."""

    trial: str
    phase: Phase
    planned: dict[str, int]
    """Parts in every batch, as in the recipe."""
    rows: dict[str, int]
    """Rows trained."""
    tokens: dict[str, int]
    """Tokens in those rows."""

    @property
    def names(self) -> list[str]:
        """What was planned, then what was read beside the plan, if anything."""
        return _names((self.planned, self.rows, self.tokens))


@dataclass(frozen=True)
class Cost:
    """What one stage cost. Its name is that of the plan: `corpus/papers`, `pretrain/<trial>`, `instruct/<trial>`..."""

    stage: str
    seconds: float
    """How long it took when it was made; 0 where it shares the artifact of a stage above."""
    cached: bool
    """It was found finished: made by an earlier run, or shared with another stage."""
    planned_tokens: int | None
    """None for a stage that does not train."""
    trained_tokens: int | None


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    recipe_name: str
    recipe_yaml: str
    """The recipe as it ran, with overrides in it."""
    recipe_digest: str
    git_sha: str | None
    made: str
    """ISO time of the report."""
    model_uri: str
    gate: Gate | None
    results: dict[str, Any]
    """The verdict's JSON."""
    curves: tuple[Curve, ...]
    mixtures: tuple[Mixture, ...]
    costs: tuple[Cost, ...]
    """In the order of the stages."""
    budget_minutes: float | None
    dropped: dict[str, dict[str, int]]
    """For each stage: how many were dropped, by reason."""
    overlap: dict[str, dict[str, int]]
    """For each set of instructions: `checked` conversations, `removed` of them for holding an exam item."""
    versions: dict[str, str]
    spent: Mapping[str, Spent] = field(default_factory=dict)
    """What the training of each trial took, all phases together; a trained trial that is not in it gets dashes."""
    gains: tuple[Gain, ...] = ()
    """What each told change cost in training, where that is known."""
    published: tuple[tuple[str, ...], ...] = ()
    """What others have printed for the recipe's exams, below a header; empty where it sits none of them."""
    timeline: Timeline | None = None
    """Which nodes there were, and when; None where none came or went."""


def render(report: Report) -> str:
    """The whole page, as HTML that ends with a newline."""
    results = finite(report.results)
    return _template().render(
        report=report,
        results=results,
        decisive=_decisive(report.gate, results),
        sources=_names(trial["perplexity"] for trial in results["trials"]),
        exams=exam_rows(results["trials"])[1:],
        exam_headings=HEADINGS,
        published_title=PUBLISHED_TITLE,
        published_note=PUBLISHED_NOTE,
        written=written_rows(results["trials"]),
        cost_tables=cost_tables(results.get("cost")),
        spent={trial["name"]: _spent(trial, report.spent) for trial in results["trials"]},
        most_tokens=max((cost.trained_tokens for cost in report.spent.values()), default=0),
        figures=_figures(report.gate, report.curves, results) | _timeline(report.timeline),
        node_rows=node_rows(report.timeline),
        small=SMALL,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({form.__name__: form for form in FORMATS})
    return environment.get_template(TEMPLATE)


def finite(value: Any) -> Any:
    """A JSON value with None for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def count(number: int | None) -> str:
    """`23,040`."""
    return NONE if number is None else f"{number:,}"


def perplexity(value: float | None) -> str:
    """`29.56`."""
    return NONE if value is None else f"{value:.2f}"


def share(part: float | None) -> str:
    """`35%`."""
    return NONE if part is None else f"{100 * part:.0f}%"


def change(effect: dict[str, Any]) -> str:
    """`-4.3%` of perplexity, `+1.5 pts` of accuracy."""
    return change_text(effect["measure"], effect["change"])


def interval(effect: dict[str, Any]) -> str:
    """`[-6.4%, -2.1%]` of perplexity, `[-3.0, +6.0]` of accuracy."""
    return interval_text(effect["measure"], effect["low"], effect["high"])


def points(gain: dict[str, Any]) -> str:
    """`+10.0 pts [-4.0, +24.0]`: a change of accuracy and its interval."""
    effect = gain | {"measure": "accuracy"}
    return f"{change(effect)} {interval(effect)}"


def nats(gain: dict[str, Any]) -> str:
    """`+0.21 [+0.10, +0.32]`, in nats per token."""
    if gain["change"] is None:
        return NONE
    missing = gain["low"] is None or gain["high"] is None
    return f"{gain['change']:+.2f} " + ("no interval" if missing else f"[{gain['low']:+.2f}, {gain['high']:+.2f}]")


def p_value(p: float | None) -> str:
    """`0.61`, `0.004`, `<0.001`."""
    return p_text(p)


def wanting(effect: dict[str, Any]) -> str:
    """`needs about 1,300 items or 5 seeds`; '' where there is nothing to say."""
    return needs_text(effect["needs"], effect["measure"])


def margin(entry: dict[str, Any]) -> str:
    """`5.0%` of perplexity, `2.0 pts` of accuracy."""
    return margin_text(entry["measure"], entry["margin"])


def per_hour(gain: Gain) -> str:
    """`-4.3%` of perplexity an hour, `+1.5 pts` of accuracy."""
    return gain_text(gain.measure, gain.per_hour)


def minutes(number: float | None) -> str:
    """`2.5`."""
    return NONE if number is None else f"{number:,.1f}"


FORMATS: tuple[Callable[..., str], ...] = (
    count, perplexity, share, change, interval, points, nats, p_value, minutes, wanting, margin, per_hour,
)  # fmt: skip


def _names(parts: Iterable[Iterable[str]]) -> list[str]:
    """Every key once, in order of appearance."""
    return list(dict.fromkeys(name for part in parts for name in part))


def _decisive(gate: Gate | None, results: dict[str, Any]) -> list[dict[str, Any]]:
    """The effects that the gate looks at, in its order: those of the winner, or of every candidate where none passed."""
    if gate is None:
        return []
    asked = [("perplexity", source) for source in gate.improves] + [("accuracy", exam) for exam in gate.keeps]
    found = {(e["variant"], e["reference"], e["measure"], e["on"]): e for e in results["effects"]}
    candidates = (results["gate"]["winner"],) if results["gate"]["winner"] else gate.candidates
    keys = [(candidate, gate.control, *question) for candidate in candidates for question in asked]
    return [found[key] for key in keys if key in found]


def _spent(trial: dict[str, Any], spent: Mapping[str, Spent]) -> Spent | None:
    """Nothing for a variant that does not train; None for a trained one of which it is not known."""
    return spent.get(trial["name"], Spent(0, 0.0) if trial["seed"] is None else None)


def _figures(gate: Gate | None, curves: tuple[Curve, ...], results: dict[str, Any]) -> dict[str, Markup]:
    """Every figure that there is something to draw for, by name."""
    found = {}
    axes = {"perplexity": "change of perplexity, % (less is better)", "accuracy": "change of accuracy, points (more is better)"}
    for measure, axis in axes.items():
        if effects := [e for e in results["effects"] if e["measure"] == measure and e["change"] is not None]:
            words = ", ".join(f"{sum(e['word'] == word for e in effects)} {word}" for word in ("helped", "hurt", "cannot tell"))
            alt = f"Forest plot of {len(effects)} changes of {measure} with intervals: {words}. The table below has the numbers."
            found[measure] = plots.forest(measure, alt, [_effect_row(effect) for effect in effects], axis)
    if probes := main_probes(gate, results["probes"]):
        alt = "Changes against the control, with intervals, on trained facts and their twins, by kind. The table below has all."
        facts = [_probe_row(p, p, ("learned", "generalised"), 100) for p in probes]
        gains = [_probe_row(p, p["likelihood"], ("learned", "generalised", "specific"), 1) for p in probes]
        found["facts"] = plots.forest("facts", alt, facts, "change of facts right, points")
        found["gains"] = plots.forest("gains", alt, gains, "gain in log-probability, nats per token")
    trials = _names([curve.trial] for curve in curves)
    for phase in PHASES:
        mine = [curve for curve in curves if curve.phase == phase and curve.steps]
        if lines := [plots.Line(c.trial, c.steps, c.loss, c.lr, trials.index(c.trial)) for c in mine]:
            ends = "; ".join(f"{line.name} from {line.loss[0]:.2f} to {line.loss[-1]:.2f}" for line in lines)
            found[phase] = plots.curves(phase, f"Loss in nats per target by optimizer step: {ends}.", lines)
    return {name: Markup(svg) for name, svg in found.items()}


def _timeline(timeline: Timeline | None) -> dict[str, Markup]:
    return {} if timeline is None else {"timeline": Markup(picture(timeline))}


def _effect_row(effect: dict[str, Any]) -> plots.Row:
    mark = _mark(effect["word"], effect, 100)
    return plots.Row(f"{effect['variant']} - {effect['reference']}, {effect['on']}", effect["word"], (mark,))


def _probe_row(probe: dict[str, Any], gains: dict[str, Any], series: tuple[str, ...], scale: float) -> plots.Row:
    marks = tuple(_mark(name, gains[name], scale) for name in series if gains[name]["change"] is not None)
    label = f"{probe['variant']} - {probe['reference']}, {probe['kind']}"
    return plots.Row(label, f"knew {share(probe['already_knew'])}", marks)


def _mark(series: str, gain: dict[str, Any], scale: float) -> plots.Mark:
    low, high = (None if end is None else scale * end for end in (gain["low"], gain["high"]))
    return plots.Mark(series, scale * gain["change"], low, high)

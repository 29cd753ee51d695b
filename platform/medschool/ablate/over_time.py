"""The timeline of a run on a cluster that grows, as a picture and as rows of a table.

    nodes      a row for each type: how many run (filled), how many are on their way above them (hatched)
    waiting    logical CPUs, and GPUs, of everything that was asked for and had no place
    stages     a row for each kind of stage, a bar for each stage; the same kind twice at once is one bar over the other

All of them over one axis of time, so that a demand, the nodes that it brings and the stage that waits for them stand in one line.
"""

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from medschool.ablate.plots import AXIS, BLUE, FAINT, GREEN, GREY, INK, LEGEND, RUST, SIDE, WIDTH, _figure, _legend, _svg
from medschool.cluster.timeline import Moment, Span, Timeline

LEFT = 108
"""Pixels for the names of the rows."""
NODES, WAITING, STAGE, GAP = 36, 36, 15, 10
"""Pixels of a row of nodes, of requests, of one kind of stage, and between two rows."""
IN_MINUTES_S = 240
"""From this length on the axis is in minutes."""


def node_rows(timeline: Timeline | None) -> list[list[str]]:
    """A header, and a row for each type of node: most at once, when the first ran, node-seconds. Empty without a timeline."""
    if timeline is None:
        return []
    rows = [["node type", "most at once", "first after, s", "node-seconds"]]
    for name, seconds in timeline.node_seconds().items():
        counts = timeline.counts(name)
        first = next(moment.at_s for moment, count in zip(timeline.moments, counts, strict=True) if count)
        rows.append([name, f"{max(counts)}", f"{first - timeline.began_s:,.0f}", f"{seconds:,.0f}"])
    return rows


def picture(timeline: Timeline) -> str:
    """The timeline as one `<svg>` element."""
    kinds = _kinds(timeline.spans)
    heights = [*[NODES] * len(timeline.types), WAITING, *([STAGE * len(kinds)] if kinds else [])]
    unit_s, unit = (60.0, "minutes") if timeline.ended_s - timeline.began_s > IN_MINUTES_S else (1.0, "seconds")
    with mpl.rc_context():
        figure = _figure("timeline", 12 + sum(heights) + GAP * (len(heights) - 1) + AXIS + LEGEND)
        rows, top = [], 12
        for height in heights:
            rows.append(_axes(figure, top, height))
            top += height + GAP
        clock = [(moment.at_s - timeline.began_s) / unit_s for moment in timeline.moments]
        clock.append((timeline.ended_s - timeline.began_s) / unit_s)
        for axes, name in zip(rows, timeline.types, strict=False):
            _nodes(axes, clock, timeline.moments, name)
        _waiting(rows[len(timeline.types)], clock, timeline.moments)
        if kinds:
            _stages(rows[-1], timeline, kinds, unit_s)
        for axes in rows:
            axes.set_xlim(0, max(clock[-1], 1e-9))
            axes.grid(True, axis="x")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=2))
            axes.tick_params(axis="x", labelbottom=axes is rows[-1])
        rows[-1].set_xlabel(f"{unit} since the beginning")
        _legend(figure, [_filled("run"), _hatched("on their way"), _asked("asked for, without a place")], 3)
        return _svg(figure, "timeline", _said(timeline))


def _said(timeline: Timeline) -> str:
    """What the picture shows, in words."""
    most = ", ".join(f"{name} at most {max(timeline.counts(name))}" for name in timeline.types) or "none but the head"
    return f"Nodes by type over {timeline.ended_s - timeline.began_s:.0f} seconds ({most}), requests and stages below."


def _kinds(spans: Sequence[Span]) -> list[str]:
    """`corpus`, `tokens`..., in the order of their first stage."""
    return list(dict.fromkeys(span.name.split("/")[0] for span in spans))


def _axes(figure: Figure, top: int, height: int) -> Axes:
    whole = figure.get_figheight() * 72
    return figure.add_axes((LEFT / WIDTH, 1 - (top + height) / whole, (WIDTH - LEFT - SIDE) / WIDTH, height / whole))


def _nodes(axes: Axes, clock: Sequence[float], moments: Sequence[Moment], name: str) -> None:
    """One type: what runs from the ground, what is on its way on top of it."""
    run = [moment.nodes.get(name, 0) for moment in moments]
    both = [count + moment.coming.get(name, 0) for count, moment in zip(run, moments, strict=True)]
    run, both = [*run, run[-1]], [*both, both[-1]]
    axes.fill_between(clock, run, step="post", facecolor=BLUE, linewidth=0)
    axes.fill_between(clock, run, both, step="post", facecolor="white", edgecolor=GREY, hatch="////", linewidth=0)
    _counted(axes, name, max(both))


def _waiting(axes: Axes, clock: Sequence[float], moments: Sequence[Moment]) -> None:
    """Logical CPUs without a place, and GPUs on the same scale."""
    total = [sum(moment.waiting.values()) for moment in moments]
    axes.fill_between(clock, [*total, total[-1]], step="post", facecolor=RUST, alpha=0.75, linewidth=0)
    gpus = any("GPU" in moment.waiting for moment in moments)
    _counted(axes, "CPUs, GPUs\nwaiting" if gpus else "CPUs\nwaiting", max(total))


def _counted(axes: Axes, name: str, most: float) -> None:
    """The row's name, and a scale of nothing and the most."""
    axes.set_ylim(0, 1.12 * most or 1)
    axes.set_yticks([0, most] if most else [0], ["0", f"{most:g}"] if most else ["0"])
    axes.tick_params(axis="y", length=0)
    _named(axes, 0.5, name)


def _stages(axes: Axes, timeline: Timeline, kinds: Sequence[str], unit_s: float) -> None:
    axes.set_ylim(len(kinds), 0)
    axes.set_yticks([])
    for span in timeline.spans:
        row = kinds.index(span.name.split("/")[0])
        began_s = max(0.0, span.began_s - timeline.began_s)
        length_s = span.ended_s - timeline.began_s - began_s
        axes.barh(row + 0.5, length_s / unit_s, left=began_s / unit_s, height=0.62, facecolor=GREEN, edgecolor=INK, linewidth=0.5)
    for row, kind in enumerate(kinds):
        axes.axhline(row, color=FAINT, linewidth=0.6)
        _named(axes, 1 - (row + 0.5) / len(kinds), kind)


def _named(axes: Axes, height: float, name: str) -> None:
    """A row's name at the left edge of the figure; `height` as a share of the row's."""
    width = WIDTH - LEFT - SIDE
    axes.text(-(LEFT - SIDE / 2) / width, height, name, transform=axes.transAxes, va="center", ha="left")


def _filled(label: str) -> Patch:
    return Patch(facecolor=BLUE, label=label)


def _hatched(label: str) -> Patch:
    return Patch(facecolor="white", edgecolor=GREY, hatch="////", linewidth=0, label=label)


def _asked(label: str) -> Patch:
    return Patch(facecolor=RUST, alpha=0.75, label=label)

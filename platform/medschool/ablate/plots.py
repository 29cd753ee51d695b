"""The figures of the report as inline SVG: changes with their intervals, and curves of loss.

Each function returns one `<svg>` element as text. Text stays text (svg.fonttype "none"), so it can be read, searched and scaled.
The same input gives the same bytes: matplotlib's defaults are restored first, ids are salted with the figure's name, no date is
written. Ids and references get the figure's name in front, because one page holds several figures.

One unit is one pixel. A figure is narrow on purpose: on a telephone it is shrunk by a fifth at most, and stays readable. What a
mark means is told by its shape and by a word, never by colour alone. All colours have a contrast of 4.5 to 1 or more on white.
"""

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.typing import LineStyleType, RcKeyType

WIDTH = 440
"""Width of every figure, in pixels."""
SIDE, AXIS, LEGEND = 16, 44, 19
"""Pixels of the margin left and right, of the axis with its name below a panel, and of one line of the legend."""
LINE, MARK, GAP = 16, 13, 12
"""Pixels of one line of a row's label, of one of its marks, and of the space beneath the row."""
LABEL_CHARS = 42
INK, FAINT = "#1d2430", "#d5dae1"
BLUE, RUST, GREY, GREEN, PURPLE, OCHRE, CRIMSON = "#0b5fa5", "#b3470b", "#5a626e", "#12755a", "#8a3d86", "#806000", "#a3214f"

SERIES = {
    "helped": (BLUE, "o", True),
    "hurt": (RUST, "s", True),
    "cannot tell": (GREY, "D", False),
    "learned": (BLUE, "o", True),
    "generalised": (RUST, "s", False),
    "specific": (GREEN, "^", True),
}
"""Colour, marker, and whether it is filled, of each kind of mark. The order is that of the legend."""
STYLES = tuple(zip((BLUE, RUST, GREEN, PURPLE, OCHRE, CRIMSON, GREY), "os^Dv<>", strict=True))
DASHES: tuple[LineStyleType, ...] = ("-", "--", "-.", ":")

RC: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Mark:
    """A point and its interval, in the unit of the figure's axis."""

    series: str
    """A key of SERIES."""
    point: float
    low: float | None
    """Ends of the interval; None where there is none."""
    high: float | None


@dataclass(frozen=True)
class Row:
    """One comparison: its name on the left, a word on the right, and its marks beneath."""

    label: str
    note: str
    marks: tuple[Mark, ...]

    @property
    def lines(self) -> list[str]:
        return textwrap.wrap(self.label, LABEL_CHARS) or [""]

    @property
    def height(self) -> int:
        """In pixels."""
        return LINE * len(self.lines) + MARK * len(self.marks) + GAP


@dataclass(frozen=True)
class Line:
    """One line of a plot over optimizer steps."""

    name: str
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    """Nats per target, one for each step."""
    lr: tuple[float, ...]
    """Learning rate, one for each step."""
    style: int
    """Number of its colour, marker and dashes; a trial keeps its own in all figures."""


def forest(name: str, alt: str, rows: Sequence[Row], axis: str) -> str:
    """Intervals around zero, one row each, as `<svg>`. `axis` names the quantity and its unit, `alt` is read to the blind."""
    body = sum(row.height for row in rows)
    with mpl.rc_context():
        figure = _figure(name, body + AXIS + LEGEND + 4)
        axes = _panel(figure, SIDE, 4, body)
        _scale(axes, rows, body)
        top = 0
        for row in rows:
            _row(axes, row, top)
            top += row.height
        axes.set_xlabel(axis)
        used = {mark.series for row in rows for mark in row.marks}
        _legend(figure, [_handle(series) for series in SERIES if series in used], len(SERIES))
        return _svg(figure, name, alt)


def curves(name: str, alt: str, lines: Sequence[Line]) -> str:
    """Loss over optimizer steps, one line for each trial, and the learning rate beneath, as `<svg>`."""
    loss_height, rate_height, left = 220, 56, 64
    with mpl.rc_context():
        figure = _figure(name, 12 + loss_height + 22 + rate_height + AXIS + LEGEND * len(lines))
        loss = _panel(figure, left, 12, loss_height)
        rate = _panel(figure, left, 12 + loss_height + 22, rate_height)
        handles = [_draw(loss, line) for line in lines]
        for steps, rates in dict.fromkeys((line.steps, line.lr) for line in lines):
            rate.plot(steps, rates, color=GREY)
        for axes, label in ((loss, "loss, nats per target"), (rate, "learning rate")):
            axes.grid(True)
            axes.set_ylabel(label)
            axes.yaxis.set_label_coords(-(left - 14) / (WIDTH - left - SIDE), 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        loss.tick_params(labelbottom=False)
        loss.set_xlim(rate.get_xlim())
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_locator(MaxNLocator(nbins=2))
        rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-") if value else "0"))
        rate.yaxis.label.set_text("rate")
        rate.set_xlabel("optimizer step")
        _legend(figure, handles, 1)
        return _svg(figure, name, alt)


def _figure(name: str, height: int) -> Figure:
    mpl.rcdefaults()
    mpl.rcParams.update({**RC, "svg.hashsalt": name})
    return Figure(figsize=(WIDTH / 72, height / 72), dpi=72)


def _panel(figure: Figure, left: int, top: int, height: int) -> Axes:
    """Axes whose corner stands `left` and `top` pixels from the figure's."""
    whole = figure.get_figheight() * 72
    return figure.add_axes((left / WIDTH, 1 - (top + height) / whole, (WIDTH - left - SIDE) / WIDTH, height / whole))


def _scale(axes: Axes, rows: Sequence[Row], body: int) -> None:
    """Horizontally so that zero and every interval fit; vertically one unit is one pixel, downwards."""
    ends = [end for row in rows for mark in row.marks for end in (mark.point, mark.low, mark.high) if end is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    space = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - space, high + space)
    axes.set_ylim(body, 0)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.4g}" if value else "0"))
    axes.grid(True, axis="x")
    axes.axvline(0, color=INK, linewidth=1.2)


def _row(axes: Axes, row: Row, top: int) -> None:
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    across = axes.get_yaxis_transform()
    for number, line in enumerate(row.lines):
        middle = top + LINE * (number + 0.5)
        axes.text(0, middle, line, transform=across, va="center", bbox=white)
    axes.text(1, top + LINE / 2, row.note, transform=across, va="center", ha="right", color=_note_colour(row), bbox=white)
    for number, mark in enumerate(row.marks):
        colour, marker, filled = SERIES[mark.series]
        y = top + LINE * len(row.lines) + MARK * (number + 0.5)
        if mark.low is not None and mark.high is not None:
            axes.plot([mark.low, mark.high], [y, y], color=colour, linewidth=1.8)
        axes.plot([mark.point], [y], marker=marker, markersize=6, color=colour, markerfacecolor=colour if filled else "white")


def _note_colour(row: Row) -> str:
    return SERIES[row.note][0] if row.note in SERIES else INK


def _handle(series: str) -> Line2D:
    colour, marker, filled = SERIES[series]
    return Line2D([], [], color=colour, marker=marker, markerfacecolor=colour if filled else "white", label=series)


def _draw(axes: Axes, line: Line) -> Line2D:
    colour, marker = STYLES[line.style % len(STYLES)]
    every = max(1, len(line.steps) // 10)
    dashes = DASHES[line.style % len(DASHES)]
    axes.plot(line.steps, line.loss, linestyle=dashes, color=colour, marker=marker, markevery=every, markersize=4, linewidth=1.4)
    return Line2D([], [], linestyle=dashes, color=colour, marker=marker, markersize=4, linewidth=1.4, label=line.name)


def _legend(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 0), ncols=columns, frameon=False, borderpad=0.2, labelspacing=0.42,
        handlelength=3, columnspacing=1.6,
    )  # fmt: skip


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as one element that can stand in HTML beside others."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    body = file.getvalue().partition("<svg")[2].partition(">")[2].strip()
    body = re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[1]}{name}-", body).replace("xlink:href", "href")
    height = round(figure.get_figheight() * 72)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return f'<svg role="img" aria-label="{escape(alt)}" {size}>\n{body}'

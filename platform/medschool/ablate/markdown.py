"""The report as Markdown, for a merge request, a wiki or a terminal: the tables and sentences of the text report, and where from.

    verdict.json + what the stages left --Report--> markdown --> report.md

The figures are in the page alone. Cells are escaped, so that no name from outside acts as markup.
"""

import re
from collections.abc import Sequence

from medschool.ablate.exam_table import PUBLISHED_NOTE, PUBLISHED_TITLE
from medschool.ablate.gate import study_word
from medschool.ablate.over_time import node_rows
from medschool.ablate.page import Report, finite
from medschool.ablate.report import closing, sections
from medschool.recipe import Recipe

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~])")


def markdown(recipe: Recipe, report: Report) -> str:
    """The whole report; ends with a newline."""
    verdict = report.results
    parts = [
        f"# medschool report: {escaped(report.recipe_name)}",
        f"**{study_word(verdict)}**. Base model {escaped(report.model_uri)}, made {report.made}, recipe {report.recipe_digest}.",
        *(escaped(text) for text in closing(verdict, report.spent) if text),
    ]
    for title, rows in [*sections(recipe, verdict, report.spent, report.gains, theirs=True), *_left_out(report)]:
        parts += [f"## {escaped(title)}", "\n".join(table(rows))]
        parts += [escaped(PUBLISHED_NOTE)] if title == PUBLISHED_TITLE else []
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", report.recipe_yaml)), default=0))
    code = f"Code {report.git_sha}; " if report.git_sha else ""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts += ["## How to reproduce", escaped(f"{code}{versions}."), f"{fence}yaml\n{report.recipe_yaml.rstrip()}\n{fence}"]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text in which nothing is markup, in one line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of GitHub's Markdown; the first row is its head, the first column is to the left."""
    head, *body = [[escaped(cell) for cell in row] for row in rows]
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *body]
    return [f"| {' | '.join(line)} |" for line in lines]


def _left_out(report: Report) -> list[tuple[str, list[list[str]]]]:
    """What was dropped, what the exams and the corpus have in common, and what each stage took."""
    found = {
        "Dropped, by stage and reason": [
            ["stage", "reason", "count"],
            *([stage, why, f"{count:,}"] for stage, reasons in report.dropped.items() for why, count in reasons.items()),
        ],
        "Exam items found in the corpus and the instructions, and the rows withheld for them": [
            ["exam", "source", "items", "found", "rows withheld"],
            *(
                [one["exam"], one["source"], *(f"{one[key]:,}" for key in ("items", "found", "rows"))]
                for one in finite(report.results.get("contamination", []))
            ),
        ],
        "Nodes by type": node_rows(report.timeline),
        "Time of each stage": [
            ["stage", "seconds", "cached"],
            *([cost.stage, f"{cost.seconds:,.1f}", "yes" if cost.cached else "no"] for cost in report.costs),
        ],
    }
    return [(title, rows) for title, rows in found.items() if len(rows) > 1]

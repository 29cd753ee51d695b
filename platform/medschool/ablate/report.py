"""What the user reads at the end: the variants, what they cost, and what the mixture changed, in plain text."""

from typing import Any

from medschool.ablate.compare import percent
from medschool.artifact import Artifact
from medschool.recipe import Recipe

SMALL = 1_000_000
"""Training tokens under which the report says that a run shows the mechanism, not competence."""


def table(recipe: Recipe, verdict: Artifact, checkpoints: dict[str, Artifact]) -> str:
    """Perplexity of every variant on every source, then each comparison with its interval, then the gate."""
    facts = verdict.facts
    lines = ["", "Held-out perplexity (lower is better)", ""]
    header = ["variant", *recipe.sources, "trained tokens", "minutes"]
    rows = [
        _row(name, facts["perplexity"][name], list(recipe.sources), checkpoints.get(f"pretrain/{name}"))
        for name in recipe.variants
    ]
    lines += _aligned([header, *rows])
    level = f"{100 * facts['confidence']:.0f}%"
    lines += ["", f"Change of perplexity on the same held-out documents, {level} interval of the paired bootstrap", ""]
    lines += _aligned([["comparison", "source", "documents", "change", "interval", "verdict"], *map(_effect, facts["effects"])])
    lines += ["", f"Gate: {'passed' if facts['gate']['passed'] else 'not passed'}. {facts['gate']['reason']}."]
    trained = sum(int(made.facts["tokens"]) for made in checkpoints.values())
    if trained < SMALL:
        lines += [f"With {trained:,} training tokens this shows that the procedure works, not that the model knows medicine."]
    return "\n".join([*lines, "Not for clinical use.", ""])


def _row(name: str, perplexity: dict[str, float], sources: list[str], checkpoint: Artifact | None) -> list[str]:
    cost = [f"{checkpoint.facts['tokens']:,}", f"{checkpoint.seconds / 60:.1f}"] if checkpoint else ["0", "0.0"]
    return [name, *(f"{perplexity[source]:.2f}" for source in sources), *cost]


def _effect(item: dict[str, Any]) -> list[str]:
    interval = f"[{percent(item['low'])}, {percent(item['high'])}]"
    return [
        f"{item['variant']} - {item['reference']}",
        item["source"],
        str(item["documents"]),
        percent(item["change"]),
        interval,
        item["word"],
    ]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows as text columns: the first left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]

"""`medschool ledger ...`: which checkpoint has seen what."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from medschool.commands.arguments import AsJson, store_alone, table
from medschool.errors import InputError
from medschool.recipe import load

app = typer.Typer(name="ledger", no_args_is_help=True, help="Which checkpoint has seen which documents, in which steps.")
STEPS_SHOWN = 8
IDS_SHOWN = 20


@app.command()
def why(
    document: Annotated[str, typer.Argument(metavar="DOC_ID", help="A document's id, such as pmid:10704411.")],
    as_json: AsJson = False,
) -> None:
    """Say which checkpoints have seen a document: in which steps, how many of its tokens, how often.

    Example: medschool ledger why pmid:10704411
    """
    from medschool.trace.withdraw import why as ask

    _print(ask(store_alone(), document), _why_lines, as_json)


@app.command()
def withdraw(
    ids: Annotated[Path, typer.Option(help="A text file of ids, one a line, or a CSV file with a column `id`.")],
    as_json: AsJson = False,
) -> None:
    """Say what the withdrawal of documents comes to: affected checkpoints, steps, tokens, and the last clean checkpoint.

    Example: medschool ledger withdraw --ids retracted.csv --json
    """
    from medschool.trace.withdraw import read_ids
    from medschool.trace.withdraw import withdraw as ask

    wanted = read_ids(ids)
    _print(ask(store_alone(), wanted), _withdraw_lines, as_json)


@app.command()
def diff(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="First digits of a fingerprint; with --recipe a trial's name.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The other run.")],
    recipe: Annotated[Path | None, typer.Option(help="The recipe whose trials are meant by their names.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what one run has consumed and the other has not: rows, tokens, documents, and the first step that differs.

    Example: medschool ledger diff control knowledge --recipe recipes/quickstart.yaml
    """
    from medschool.trace.compare import diff as ask

    uri = store_alone()
    a, b = (_run_name(name, recipe, uri) for name in (run_a, run_b))
    _print(ask(uri, a, b), _diff_lines, as_json)


def _run_name(name: str, recipe: Path | None, store_uri: str) -> str:
    """`pretrain/<fingerprint>` of a trial's name, `instruct/<trial>` for its second training; as it is without a recipe."""
    from medschool.procedure import resolve_all, trials

    if recipe is None:
        return name
    checked = load(recipe)
    stage = name if "/" in name else f"pretrain/{name}"
    resolved = resolve_all(checked, store_uri).get(stage)
    if resolved is None or resolved.stage.kind not in ("pretrain", "instruct"):
        known = ", ".join(trial.name for trial in trials(checked) if trial.seed is not None)
        raise InputError(f"{stage} is no training of this recipe", f"trials are {known}", name)
    if resolved.fingerprint is None:
        raise InputError(f"{stage} has not begun ({resolved.reason})", f"run it first: medschool submit {recipe}", name)
    return f"{resolved.stage.kind}/{resolved.fingerprint}"


def _print(found: dict[str, Any], lines: Any, as_json: bool) -> None:
    for line in [json.dumps(found, indent=1)] if as_json else lines(found):
        print(line)


def _why_lines(found: dict[str, Any]) -> Iterator[str]:
    for place in found["stands_in"]:
        held = ", held out of training" if place["held_out"] else ""
        yield f"{found['id']} stands in {place['artifact']}: {place['rows']:,} rows, {place['tokens']:,} tokens{held}"
    if not found["stands_in"]:
        yield f"{found['id']} stands in no token artifact of this store"
    rows = [["checkpoint", "at step", "", "source", "tokens", "times", "in steps"]]
    for one in found["checkpoints"]:
        head = _head(one)
        if one["through"]:
            rows.append([*head, "", "", "", f"through {one['through']}, which it began from"])
        rows += [
            [*head, seen["source"], f"{seen['tokens']:,}", f"{seen['times']:g}", _cut(seen["steps"], STEPS_SHOWN)]
            for seen in one["seen"]
        ]
    yield from table(rows) if len(rows) > 1 else ["no checkpoint has seen it"]


def _withdraw_lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['documents']:,} documents: {len(found['runs'])} runs affected, {len(found['clean_runs'])} clean"
    for key, words in (("unknown", "in no token artifact of this store"), ("held_out", "held out, never trained on")):
        if found[key]:
            yield f"{len(found[key]):,} {words}: {_cut(found[key], IDS_SHOWN)}"
    for run in found["runs"]:
        tokens = ", ".join(f"{source} {count:,}" for source, count in run["tokens"].items())
        clean = run["last_clean"]
        yield ""
        yield f"{run['run']}  {'finished' if run['finished'] else 'not finished'}"
        if run["through"]:
            yield f"    affected through {run['through']}, which it began from"
        if run["documents"]:
            yield f"    {run['documents']:,} documents seen, tokens: {tokens}"
            yield f"    in {len(run['steps']):,} steps: {_cut(run['steps'], STEPS_SHOWN)}"
        yield f"    clean up to step {run['clean_until_step']:,}"
        yield f"    affected: {', '.join(_words(one) for one in run['affected'])}"
        yield f"    last clean: {_words(clean)}  {clean['uri'] or 'not in this store: ' + str(clean['digest'])}"


def _diff_lines(found: dict[str, Any]) -> Iterator[str]:
    for side in ("a", "b"):
        run = found[side]
        yield f"{side}: {run['run']}, {run['steps']:,} steps, {'finished' if run['finished'] else 'not finished'}"
    rows = [["source", "rows a", "rows b", "tokens a", "tokens b", "documents only a", "only b", "both"]]
    for source, told in found["sources"].items():
        pairs = [told[key][side] for key in ("rows", "tokens") for side in ("a", "b")]
        counts = [*pairs, *(told["documents"][key] for key in ("only_a", "only_b", "both"))]
        rows.append([source, *(f"{count:,}" for count in counts)])
    yield from table(rows)
    step = found["first_different_step"]
    yield f"first step that differs: {step:,}" if step else "as far as both have come, every step is the same"


def _head(one: dict[str, Any]) -> list[str]:
    return [one["checkpoint"], f"{one['step']:,}", "finished" if one["finished"] else "saved state"]


def _words(one: dict[str, Any]) -> str:
    return f"{one['checkpoint']} at step {one['step']:,}"


def _cut(values: list[Any], most: int) -> str:
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most:,} more" if len(values) > most else "")

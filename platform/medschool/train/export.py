"""The trained model as plain safetensors, with its tokenizer, template and card."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medschool.artifact import upload_folder, write_file
from medschool.ledger import LEDGER, Ledger, ledger_bytes
from medschool.procedure import row_tokens
from medschool.tokens.mixture import Weights
from medschool.track import read_journal
from medschool.train.course import Course
from medschool.train.model import model_copy
from medschool.train.saving import JOURNAL


def export(engine: Any, course: Course, ledger: Ledger, rank: int, scratch: Path) -> dict[str, Any] | None:
    """Rank 0 writes and uploads the model; its facts, and None on the other ranks. Every rank calls this."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(
        list(engine.module.parameters()), modifier_rank=0, enabled=course.recipe.cluster.zero_stage == 3
    ):
        if rank != 0:
            return None
        folder = scratch / "export"
        folder.mkdir()
        for path in model_copy(course.model).iterdir():
            if path.suffix in (".json", ".jinja", ".model") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)
        engine.module.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").write_text(card(course), encoding="utf-8")
    files = upload_folder(course.prefix_uri, folder, "export")
    files += (write_file(course.prefix_uri, JOURNAL, (scratch / JOURNAL).read_bytes()),)
    files += (write_file(course.prefix_uri, LEDGER, ledger_bytes(ledger)),)
    steps = read_journal((scratch / JOURNAL).read_bytes())
    return {
        "files": [asdict(file) for file in files],
        "rows": dict(ledger.rows),
        **({"skipped_batches": len(ledger.skipped)} if ledger.skipped else {}),
        "tokens": sum(int(step["tokens"]) for step in steps),
        "targets": sum(int(step["targets"]) for step in steps),
        "loss_first": steps[0]["loss"],
        "loss_last": steps[-1]["loss"],
    }


def card(course: Course) -> str:
    """The model card."""
    parts = _parts(course.order.weights)
    for step, weights in course.order.weights_from.items():
        parts += f"; after step {step}: {_parts(weights)}"
    what = {"pretrain": "continued pretraining", "instruct": "instruction tuning"}[course.phase]
    before = ""
    if course.model.stage == "pretrain":
        steps = course.model.facts["steps"]
        rows = ", ".join(f"{name} {number}" for name, number in course.model.facts["rows"].items())
        before = f"\nBefore: {steps} steps of continued pretraining; rows read: {rows}.\n"
    return (
        f"---\ntags: [medical, {what.replace(' ', '-')}]\npipeline_tag: text-generation\n---\n\n"
        f"# {what.capitalize()} from {course.recipe.model.uri}\n\n"
        "**Not for clinical use.** Its answers can be wrong in ways that harm.\n\n"
        f"{course.steps} steps of {course.spec.batch_rows} rows of {row_tokens(course.recipe, course.phase)} tokens; "
        f"parts of the mixture: {parts}; seed {course.order.seed}.\n" + before
    )


def _parts(weights: Weights) -> str:
    return ", ".join(f"{name} {weight}" for name, weight in weights.items())

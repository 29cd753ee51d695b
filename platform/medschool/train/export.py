"""The trained model as plain safetensors, with its tokenizer, template and card, proven before anybody can use it.

    engine --one parameter at a time--> CPU of rank 0 --save_pretrained--> safetensors --proof--> card, upload

Under ZeRO 3 no accelerator ever holds more than one whole parameter beside its own shards; the host of rank 0 holds the model
once. Adapters are merged into the weights beside them, and go along unmerged (medschool.train.adapter_files). Files are cut at
SHARD_SIZE. They are loaded again by plain transformers and compared with the trained engine (medschool.train.proof) before they
are uploaded: an export that differs fails the stage.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from medschool.artifact import upload_folder, write_file
from medschool.instructions.template import NAMED, TEMPLATE_FILE, template_of
from medschool.ledger import LEDGER, Ledger, ledger_bytes
from medschool.procedure import row_tokens
from medschool.tokens.mixture import Weights
from medschool.track import read_journal
from medschool.train.adapter_files import FOLDER, adapter_on_cpu, write_adapter
from medschool.train.course import JOURNAL, Course
from medschool.train.lora import ADAPTER
from medschool.train.model import DTYPES, model_copy
from medschool.train.proof import MOST_DIFFERENCE, Proof, prove, take_sample

INSIDE = ".base_layer.weight"
"""Where peft keeps the weight that it put an adapter beside."""
SHARD_SIZE = "5GB"
"""Largest file of weights, as transformers counts: 10^9 bytes. Its own default is ten times that."""
COPIED = (".json", ".jinja", ".model")
"""Files beside the weights that go with the model: configuration, tokenizer, chat template."""


def export(engine: Any, course: Course, ledger: Ledger, rows: pa.Table | None, rank: int, scratch: Path) -> dict[str, Any] | None:
    """Rank 0 writes, proves and uploads the model; its facts, and None on the other ranks. Every rank calls this.

    `rows`: this rank's slice of the last batch, which the proof reads. Raises StageError when the export differs from the model.
    """
    together = engine.zero_optimization_stage() == 3
    folder, sample = scratch / "export", scratch / "sample.safetensors"
    if rank == 0 or together:
        take_sample(engine, rows, DTYPES[course.recipe.model.dtype], sample)
        weights = weights_on_cpu(engine.module, together, keep=rank == 0)
        adapter = adapter_on_cpu(engine.module, together, keep=rank == 0)
    if rank != 0:
        return None
    write_model(engine.module, weights, model_copy(course.model), folder, template_of(course.recipe))
    del weights
    proof = prove(folder, sample, course.recipe.model.dtype, course.trial)
    (folder / "README.md").write_text(card(course, proof), encoding="utf-8")
    files = upload_folder(course.prefix_uri, folder, "export")
    if course.spec.lora is not None:
        write_adapter(adapter, course.spec.lora, folder, scratch / FOLDER)
        files += upload_folder(course.prefix_uri, scratch / FOLDER, FOLDER)
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
        "proof": asdict(proof),
    }


def weights_on_cpu(module: Any, partitioned: bool, keep: bool = True) -> dict[str, Any]:
    """Every weight and stored buffer by name, tied ones once, adapters merged; copies of `partitioned` ones, gathered one by one.

    Where they are partitioned (ZeRO 3) every rank calls this; those that do not `keep` get nothing.
    """
    import deepspeed

    found, stored = {}, set(module.state_dict())
    for name, parameter in module.named_parameters():
        if f".{ADAPTER}." in name:
            continue
        adapted = module.get_submodule(name.removesuffix(INSIDE)) if name.endswith(INSIDE) else None
        needed = [parameter] if adapted is None else list(adapted.parameters())
        with deepspeed.zero.GatheredParameters(needed, enabled=partitioned):
            if keep:
                whole = parameter.detach() if adapted is None else _merged(parameter.detach(), adapted)
                found[name.replace(".base_layer.", ".")] = whole.to("cpu", copy=partitioned)
    if keep:
        found |= {name: buffer.detach().cpu() for name, buffer in module.named_buffers() if name in stored}
    return found


def _merged(weight: Any, adapted: Any) -> Any:
    """W + (alpha / rank) B A (Hu et al. 2021, section 4.1), added in fp32 and rounded once to the dtype of W."""
    return (weight.float() + adapted.get_delta_weight(ADAPTER).detach().float()).to(weight.dtype)


def write_model(module: Any, weights: dict[str, Any], base: Path, folder: Path, template: str = "model") -> None:
    """A Hugging Face model folder: the `weights` in place of the module's own, and the small files of the `base` model.

    template: that of the recipe; where it is not the base model's own, it takes the place of that one.
    """
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix in COPIED and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    if template in NAMED:
        (folder / TEMPLATE_FILE).write_text(NAMED[template], encoding="utf-8")
    module.save_pretrained(folder, state_dict=weights, max_shard_size=SHARD_SIZE)


def card(course: Course, proof: Proof) -> str:
    """The model card."""
    dtype = course.recipe.model.dtype
    limit = MOST_DIFFERENCE[dtype]
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
        f"parts of the mixture: {parts}; seed {course.order.seed}.\n{before}\n"
        "These files were loaded by plain transformers and compared with the trained model. "
        f"Largest difference between two logits at {proof.positions} positions: {proof.largest_logit_difference:.1e} "
        f"(less than {limit:g} is allowed in {dtype}); the same most likely token at {proof.argmax_agreement:.1%}.\n"
    )


def _parts(weights: Weights) -> str:
    return ", ".join(f"{name} {weight}" for name, weight in weights.items())

"""Exports of real engines on two ranks, read by plain transformers: equal as written, refused with any one tensor spoiled."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.multiprocessing as processes
from safetensors.torch import load_file, save_file
from tiny import write_model as write_base

from medschool.errors import StageError
from medschool.recipe.training import Lora
from medschool.tokens.pack import Rows
from medschool.tokens.shards import rows_table, tokens_of
from medschool.train.adapter_files import adapter_on_cpu, checked_layers, checked_rank, write_adapter
from medschool.train.export import weights_on_cpu, write_model
from medschool.train.lora import add_adapters
from medschool.train.model import DTYPES, load_model, model_inputs, summed_loss, targets_of
from medschool.train.proof import Remembered, compare, prove, take_sample

LORA = Lora(rank=4, alpha=8.0)
ENGINES = [(1, "fp32", False), (3, "bf16", False), (1, "bf16", True), (3, "fp32", True)]
"""ZeRO stage, precision, adapters."""
LENGTHS = [[20, 12], [32], [5, 5, 22]]


def rows() -> pa.Table:
    tokens = np.random.default_rng(0).integers(0, 300, (3, 32)).astype(np.uint16)
    ids = [["x"] * len(lengths) for lengths in LENGTHS]
    return rows_table(Rows(tokens, np.ones(tokens.shape, bool), ids, LENGTHS, 0), np.dtype(np.uint16))


def name_of(stage: int, dtype: str, adapters: bool) -> str:
    return f"zero{stage}-{dtype}{'-adapters' * adapters}"


def adapter_of(export: Path) -> Path:
    return export.with_name(f"{export.name}.adapter")


def train_and_export(rank: int, folder: Path) -> None:
    """One process of two: an engine of every kind, one step, its sample and its export."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for stage, dtype, adapters in ENGINES:
        model = load_model(folder / "base", dtype).train()
        if adapters:
            add_adapters(model, LORA)
        config = {
            "train_batch_size": 2, "bf16": {"enabled": dtype == "bf16"}, "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        }  # fmt: skip
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        inputs = model_inputs(tokens_of(rows()), LENGTHS)
        targets = targets_of(tokens_of(rows()), LENGTHS, np.ones((3, 32), bool), np.ones(3))
        for _ in range(2):  # the first update of an adapter moves one of its two matrices alone
            engine.backward(summed_loss(engine, inputs, targets) / 90)
            engine.step()
        made = folder / name_of(stage, dtype, adapters)
        if rank == 0 or stage == 3:
            take_sample(engine, rows(), DTYPES[dtype], folder / f"{made.name}-{rank}.sample")
            weights = weights_on_cpu(engine.module, stage == 3, keep=rank == 0)
            adapter = adapter_on_cpu(engine.module, stage == 3, keep=rank == 0)
            assert bool(weights) == (rank == 0) and bool(adapter) == (rank == 0 and adapters)
        if rank == 0:
            write_model(engine.module, weights, folder / "base", made)
            if adapters:
                write_adapter(adapter, LORA, made, adapter_of(made))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base model, and the export and the sample of every engine."""
    folder = tmp_path_factory.mktemp("exports")
    (folder / "base").mkdir()
    write_base(folder / "base")
    processes.spawn(train_and_export, (folder,), nprocs=2)
    return folder


def sample_of(export: Path) -> Path:
    return export.with_name(f"{export.name}-0.sample")


@pytest.mark.parametrize(("stage", "dtype", "adapters"), ENGINES)
def test_plain_transformers_reads_the_trained_model(made: Path, stage: int, dtype: str, adapters: bool) -> None:
    export = made / name_of(stage, dtype, adapters)
    found = compare(export, sample_of(export))
    assert found.largest_logit_difference < {"fp32": 1e-5, "bf16": 1e-2}[dtype]
    assert found.argmax_agreement >= {"fp32": 1, "bf16": 0.95}[dtype]  # in bf16 two tokens may be equally likely
    assert found.positions == 32 + 32 + 16 + 16
    stored = load_file(export / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {DTYPES[dtype]}
    assert "lm_head.weight" not in stored and json.loads((export / "config.json").read_text())["tie_word_embeddings"]
    base = load_file(made / "base" / "model.safetensors")
    assert stored.keys() == base.keys()
    moved = {name for name in base if not torch.equal(stored[name], base[name].to(DTYPES[dtype]))}
    assert moved == ({name for name in base if name.endswith("_proj.weight")} if adapters else set(base))
    names = {path.name for path in export.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= names


@pytest.mark.parametrize(("stage", "dtype", "apart"), [(1, "bf16", 2e-2), (3, "fp32", 1e-5)])
def test_peft_reads_the_adapter_over_the_model_that_training_began_from(made: Path, stage: int, dtype: str, apart: float) -> None:
    from peft import PeftModel

    export = made / name_of(stage, dtype, True)
    adapter, sample = adapter_of(export), load_file(sample_of(export))
    base = load_model(made / "base", dtype).eval()
    tokens, expected = sample["prompt/tokens"], sample["prompt/logits"]
    with torch.no_grad():
        plain = base(tokens, use_cache=False).logits[0].float()
        over = PeftModel.from_pretrained(base, adapter).eval()(tokens, use_cache=False).logits[0].float()
    assert float((over - expected).abs().max()) < apart < float((plain - expected).abs().max()) / 3
    config, tensors = json.loads((adapter / "adapter_config.json").read_text()), load_file(adapter / "adapter_model.safetensors")
    assert checked_rank(config, "") == 4 and {tensor.dtype for tensor in tensors.values()} == {DTYPES[dtype]}
    checked_layers(adapter, (export / "chat_template.jinja").read_text(), "")


def test_a_process_of_its_own_says_the_same(made: Path) -> None:
    export = made / "zero3-fp32-adapters"
    assert prove(export, sample_of(export), "fp32", "knowledge") == compare(export, sample_of(export))


def transposed(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].T.contiguous()


def head_transposed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].T.contiguous()


def rounded(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})


def lost(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def no_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][0] = float("nan")


def one_row(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"][int(rows().column("tokens")[0][1].as_py())] += 0.1


def from_before_training(made: Path) -> Callable[[dict[str, torch.Tensor]], None]:
    base = load_file(made / "base" / "model.safetensors")
    return lambda tensors: tensors.update({name: base[name] for name in tensors})


def spoiled(made: Path, folder: Path, spoil: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    export = Path(shutil.copytree(made / "zero1-fp32", folder / "spoiled"))
    tensors = load_file(export / "model.safetensors")
    spoil(tensors)
    save_file(tensors, export / "model.safetensors", metadata={"format": "pt"})
    return export


@pytest.mark.parametrize("spoil", [transposed, no_number, one_row, from_before_training])
def test_a_spoiled_tensor_is_a_difference_of_logits(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None]
) -> None:
    export = spoiled(made, tmp_path, spoil(made) if spoil is from_before_training else spoil)
    found = compare(export, sample_of(made / "zero1-fp32"))
    assert not found.largest_logit_difference < 0.01


@pytest.mark.parametrize("spoil", [head_transposed, rounded, lost])
def test_tensors_that_do_not_fit_are_refused_before_any_comparison(
    made: Path, tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        compare(spoiled(made, tmp_path, spoil), sample_of(made / "zero1-fp32"))


def test_an_untied_head_is_refused(made: Path, tmp_path: Path) -> None:
    export = spoiled(made, tmp_path, lambda tensors: None)
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ValueError, match=r"missing_keys.*lm_head\.weight"):
        compare(export, sample_of(made / "zero1-fp32"))


@pytest.mark.long
def test_what_is_refused_says_how_far_off_it_is(made: Path, tmp_path: Path) -> None:
    export = spoiled(made, tmp_path, transposed)
    with pytest.raises(
        StageError, match=r"differ from the trained one's by [\d.]+ \(less than 0\.01 is allowed in fp32\).*of 96"
    ) as off:
        prove(export, sample_of(made / "zero1-fp32"), "fp32", "knowledge")
    assert off.value.where == "knowledge" and "nothing was committed" in off.value.remedy


@pytest.mark.long
def test_an_export_that_does_not_load_says_why(made: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"does not load.*model\.norm\.weight"):
        prove(spoiled(made, tmp_path, lost), sample_of(made / "zero1-fp32"), "fp32", "knowledge")


def test_the_last_table_is_remembered() -> None:
    fed = Remembered(iter([pa.table({"x": [1]}), pa.table({"x": [2]})]))
    assert fed.last is None and len(list(fed)) == 2 and fed.last is not None and fed.last["x"].to_pylist() == [2]

"""The engine against a loop in plain torch: the same losses and weights at every ZeRO stage, whatever saves memory or time.

One process is a group of its own here; two ranks of ZeRO 3 are a long test.
"""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from medschool.artifact import Artifact, ArtifactFile
from medschool.cluster.fit import parameters, shape_of
from medschool.cluster.memory import training_memory
from medschool.errors import InputError, PlanError
from medschool.ledger import Ledger
from medschool.recipe import load
from medschool.tokens.order import Order
from medschool.train.adapter_files import CONFIG, TEMPLATE, WEIGHTS
from medschool.train.adopt import adopt_model, draw_model
from medschool.train.course import Course
from medschool.train.engine import build_engine, check_documents_apart
from medschool.train.export import export, weights_on_cpu
from medschool.train.lora import add_adapters
from medschool.train.model import (
    load_model,
    model_inputs,
    random_model,
    summed_loss,
    targets_of,
)
from medschool.train.saving import JOURNAL
from medschool.train.schedule import lr_factor
from medschool.train.zero import check_batch, deepspeed_config

ROWS, LENGTH, STEPS = 4, 64, 3
LENGTHS = [[40, 24], [64], [10, 20, 34], [1, 63]]
SETTINGS = (f"pretrain.batch_rows={ROWS}", "pretrain.optimizer.weight_decay=0.1", "pretrain.optimizer.clip_norm=0.5")
LORA = "pretrain.lora={rank: 4, alpha: 8}"
WAYS = {
    "zero 0": "cluster.zero_stage=0",
    "zero 1": "cluster.zero_stage=1",
    "zero 2": "cluster.zero_stage=2",
    "zero 3": "cluster.zero_stage=3",
    "eager": "cluster.attention=eager",
    "chunks": "cluster.loss_chunk_tokens=50",
    "checkpointing": "cluster.activation_checkpointing=true",
    "zero 3, both": "cluster.zero_stage=3 cluster.loss_chunk_tokens=50 cluster.activation_checkpointing=true",
    "optimizer on the CPU": "cluster.zero_stage=2 cluster.offload=[optimizer]",
    "all on the CPU": "cluster.zero_stage=3 cluster.offload=[optimizer,parameters]",
}


def course(lone_store: Path, *overrides: str) -> Course:
    recipe = load(lone_store / "tiny.yaml", [*SETTINGS, *overrides])
    model = Artifact(
        "model", "f", "m", str(lone_store / "raw/models/tiny"), adopt_model(recipe, str(lone_store)).files, {}, {}, 0
    )
    order = Order({"general": ROWS}, ROWS, {"general": (100,)}, seed=3)
    return Course(recipe, "pretrain", "t", model, order, STEPS, "", "", None)


def batch() -> tuple[np.ndarray, torch.Tensor]:
    tokens = np.random.default_rng(0).integers(0, 300, (ROWS, LENGTH)).astype(np.uint16)
    return tokens, targets_of(tokens, LENGTHS, np.ones(tokens.shape, bool), np.ones(ROWS))


def trained(course: Course) -> tuple[list[float], dict[str, torch.Tensor], Any]:
    """Mean loss of each step, the weights after the last one, and the engine."""
    import deepspeed

    engine, (tokens, targets), losses = build_engine(course, 1), batch(), []
    micro, count = engine.train_micro_batch_size_per_gpu(), float((targets >= 0).sum())
    for _ in range(STEPS):
        total = 0.0
        for first in range(0, ROWS, micro):
            rows = slice(first, first + micro)
            inputs = model_inputs(tokens[rows], LENGTHS[rows], engine.module.config._attn_implementation)
            loss = summed_loss(engine, inputs, targets[rows])
            total += float(loss.detach())
            engine.backward(loss * (engine.gradient_accumulation_steps() / count))
            engine.step()
        losses.append(total / count)
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return losses, {name: weight.detach().clone() for name, weight in engine.module.named_parameters()}, engine


def in_plain_torch(course: Course) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same in fp32 with nothing but torch, one document at a time, and what the loop promises: mean over all targets, clipped."""
    spec, folder = course.spec.optimizer, course.model.prefix_uri
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    tokens, losses = batch()[0], []
    documents = [
        torch.from_numpy(document.astype(np.int64))[None]
        for row, lengths in zip(tokens, LENGTHS, strict=True)
        for document in np.split(row, np.cumsum(lengths)[:-1])
    ]
    count = sum(document.shape[1] - 1 for document in documents)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * lr_factor(step, STEPS, spec.warmup_fraction, spec.final_lr_fraction)
        optimizer.zero_grad()
        total = 0.0
        for ids in documents:
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
        optimizer.step()
        losses.append(total)
    return losses, {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.fixture(scope="module")
def plain(lone_store: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    return in_plain_torch(course(lone_store))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_as_plain_torch_does(
    way: str, lone_store: Path, plain: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    micro = "cluster.micro_batch_tokens=128"
    losses, weights, _ = trained(course(lone_store, micro, *WAYS[way].split()))
    assert losses == pytest.approx(plain[0], rel=1e-6)
    far = {name: float((weight - plain[1][name]).norm() / plain[1][name].norm()) for name, weight in weights.items()}
    assert weights.keys() == plain[1].keys() and max(far.values()) < 3e-4, (
        far
    )  # where a gradient is almost 0, Adam turns on its sign


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_trains_as_fp32_does_but_for_its_rounding(
    stage: int, lone_store: Path, plain: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    losses, weights, _ = trained(
        course(lone_store, "model.dtype=bf16", "cluster.micro_batch_tokens=64", f"cluster.zero_stage={stage}")
    )
    assert losses == pytest.approx(plain[0], rel=4e-3)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_plan_counts_the_states_that_an_engine_holds(stage: int, dtype: str, lone_store: Path) -> None:
    one = course(lone_store, f"model.dtype={dtype}", f"cluster.zero_stage={stage}")
    engine = trained(one)[2]
    optimizer = engine.optimizer.optimizer if stage or dtype == "bf16" else engine.optimizer
    held = [*engine.module.parameters(), *(weight for group in optimizer.param_groups for weight in group["params"])]
    held += [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.numel() > 1]
    held_bytes = sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in held}.values())
    shape = shape_of(json.loads((Path(one.model.prefix_uri) / "config.json").read_text()), "")
    planned = training_memory(shape, one.recipe.cluster, dtype, 64, 64, 1)
    gradients = parameters(shape) * (2 if dtype == "bf16" else 4)
    assert held_bytes == pytest.approx(planned.states_bytes - gradients, rel=1e-3)


@pytest.mark.long  # torch.compile takes a minute for each
@pytest.mark.parametrize("way", ["zero 1", "zero 3", "chunks", "checkpointing"])
def test_a_compiled_model_trains_as_plain_torch_does(
    way: str, lone_store: Path, plain: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    losses, _, _ = trained(course(lone_store, "cluster.compile=true", *WAYS[way].split()))
    assert losses == pytest.approx(plain[0], rel=1e-5)


@pytest.mark.parametrize("stage", [1, 3])
def test_adapters_alone_are_trained_and_merge_into_the_weights(stage: int, lone_store: Path) -> None:
    losses, weights, engine = trained(course(lone_store, f"cluster.zero_stage={stage}", LORA))
    assert losses[-1] < losses[0]
    before = dict(load_model(Path(course(lone_store).model.prefix_uri), "fp32").named_parameters())
    frozen = {name.replace(".base_layer", ""): weight for name, weight in weights.items() if "lora_" not in name}
    assert all(torch.equal(weight, frozen[name]) for name, weight in before.items())
    after = weights_on_cpu(engine.module, partitioned=stage == 3)
    assert before.keys() <= after.keys() and not any("lora" in name for name in after)
    for name, weight in before.items():
        low, high = (weights.get(f"{name.removesuffix('.weight')}.lora_{part}.default.weight") for part in "AB")
        expected = weight if low is None else weight + (8 / 4) * high @ low
        assert torch.allclose(after[name], expected, atol=1e-6) and (low is None or not torch.equal(after[name], weight))


def test_an_export_carries_the_adapter_beside_the_merged_model(lone_store: Path, tmp_path: Path) -> None:
    one, scratch = replace(course(lone_store, LORA), prefix_uri=str(tmp_path / "made")), tmp_path / "scratch"
    scratch.mkdir()
    (scratch / JOURNAL).write_text(json.dumps({"step": 1, "tokens": 8, "targets": 8, "loss": 1.0}) + "\n")
    facts = export(trained(one)[2], one, Ledger(one.order, LENGTH, {"general": "d"}, "m"), None, 0, scratch)
    assert facts is not None
    written = {file["path"]: file["sha256"] for file in facts["files"]}
    beside = {f"adapter/{name}" for name in (CONFIG, WEIGHTS, TEMPLATE)}
    assert beside == {path for path in written if path.startswith("adapter/")}
    assert written[f"adapter/{TEMPLATE}"] == written[f"export/{TEMPLATE}"]
    folders = (tmp_path / "made" / "export", lone_store / "raw" / "models" / "tiny")
    merged, base = (load_file(folder / "model.safetensors") for folder in folders)
    ours = load_file(tmp_path / "made" / "adapter" / WEIGHTS)
    layer = "model.layers.0.self_attn.q_proj"
    low, high = (ours[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
    assert torch.allclose(merged[f"{layer}.weight"], base[f"{layer}.weight"] + (8 / 4) * high @ low, atol=1e-6) and high.any()


def test_adapters_name_the_layers_that_there_are(lone_store: Path) -> None:
    with pytest.raises(PlanError, match="no linear layers named query") as refused:
        build_engine(course(lone_store, "pretrain.lora={rank: 4, alpha: 8, modules: [query]}"), 1)
    assert "q_proj" in refused.value.remedy


def test_a_saved_state_with_adapters_goes_on_as_if_never_stopped(lone_store: Path, tmp_path: Path) -> None:
    _, whole, engine = trained(course(lone_store, LORA))
    engine.save_checkpoint(str(tmp_path), tag="state")
    again = build_engine(course(lone_store, LORA), 1)
    again.load_checkpoint(str(tmp_path), tag="state")
    assert all(torch.equal(weight, whole[name]) for name, weight in again.module.named_parameters())
    tokens, targets = batch()
    for each in (engine, again):
        each.backward(summed_loss(each, model_inputs(tokens, LENGTHS), targets) / 100)
        each.step()
    pairs = zip(engine.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_with_zero_3_a_loaded_weight_is_a_shard_from_the_start(lone_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before DeepSpeed has built its engine: whole weights are gone, shards hold the numbers of the file."""
    import deepspeed

    seen: list[Any] = []
    built = deepspeed.initialize
    monkeypatch.setattr(deepspeed, "initialize", lambda **about: (seen.append(look(about["model"])), built(**about))[1])
    expected = dict(load_model(Path(course(lone_store).model.prefix_uri), "fp32").named_parameters())

    def look(model: Any) -> tuple[int, bool]:
        held = sum(weight.data.numel() for weight in model.parameters())
        same = all(torch.equal(weight.ds_tensor.view(-1), expected[name].view(-1)) for name, weight in model.named_parameters())
        return held, same

    build_engine(course(lone_store, "cluster.zero_stage=3"), 1)
    assert seen == [(0, True)]


@pytest.mark.parametrize("stage", [1, 3])
def test_a_leak_between_documents_stops_training_before_it_starts(stage: int, lone_store: Path) -> None:
    engine = build_engine(course(lone_store, f"cluster.zero_stage={stage}"), 1)
    whole = engine.module.forward

    def leaking(**inputs: Any) -> Any:
        length = inputs["input_ids"].shape[1]
        return whole(**inputs | {"position_ids": torch.arange(length)[None]})

    engine.module.forward = leaking
    with pytest.raises(PlanError, match=r"documents in one row see each other: llama with sdpa on cpu"):
        check_documents_apart(engine)


def test_missing_weights_are_not_drawn_at_random(lone_store: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(course(lone_store).model.prefix_uri)
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"1 weights are missing.*layers\.1\.mlp\.up_proj"):
        load_model(tmp_path, "fp32")


def test_random_weights_are_those_of_the_seed_and_stored_as_any_other(lone_store: Path, tmp_path: Path) -> None:
    recipe = load(lone_store / "tiny.yaml", ["model.weights=random"])
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "store/raw/models/tiny").mkdir(parents=True, exist_ok=True)
        (tmp_path / "store/raw/models/tiny" / name).write_bytes((lone_store / "raw/models/tiny" / name).read_bytes())
    made = [draw_model(recipe, str(tmp_path / "store"), str(tmp_path / each)).files for each in ("a", "b")]
    other = draw_model(recipe.model_copy(update={"seed": 4}), str(tmp_path / "store"), str(tmp_path / "c")).files
    assert made[0] == made[1] and weights_of(made[0]) != weights_of(other)
    drawn = random_model(tmp_path / "a", "fp32", recipe.seed).state_dict()
    loaded = load_model(tmp_path / "a", "fp32").state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in drawn.items())
    assert math.isclose(float(drawn["model.layers.0.mlp.up_proj.weight"].std()), 0.02, rel_tol=0.05)  # initializer_range
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        adopt_model(recipe, str(tmp_path / "store"))


def weights_of(files: tuple[ArtifactFile, ...]) -> str:
    return next(file.sha256 for file in files if file.path == "model.safetensors")


def test_batches_that_do_not_fit_say_all_their_sizes(lone_store: Path) -> None:
    recipe = course(lone_store).recipe
    sizes = r"4 rows of 64 tokens, 256 tokens a micro-batch, {} workers"
    with pytest.raises(PlanError, match=sizes.format(5)) as refused:
        check_batch(recipe, "pretrain", 5)
    assert "cluster.num_workers to 4" in refused.value.remedy
    with pytest.raises(PlanError, match=sizes.format(2) + ".*longer than the 32 positions"):
        check_batch(recipe, "pretrain", 2, positions=32)
    for workers in (1, 2, 3, 4):
        check_batch(recipe, "pretrain", workers, positions=64)


def test_offloading_is_told_to_deepspeed(lone_store: Path) -> None:
    recipe = load(lone_store / "tiny.yaml", ["cluster.zero_stage=3", "cluster.offload=[optimizer,parameters]"])
    on_gpus = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"gpus_per_worker": 1.0})})
    for each, pinned in ((recipe, False), (on_gpus, True)):
        zero = deepspeed_config(each, "pretrain", 2)["zero_optimization"]
        assert zero["offload_optimizer"] == zero["offload_param"] == {"device": "cpu", "pin_memory": pinned}


def two_ranks(rank: int, lone_store: Path, meet: str) -> None:
    """One of two ranks of ZeRO 3: what it holds of the model when it is loaded, and after the engine is built."""
    os.environ.update(
        LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2", DS_ACCELERATOR="cpu", MEDSCHOOL_CACHE=f"{lone_store}/cache"
    )
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    engine = build_engine(course(lone_store, "cluster.zero_stage=3"), 2)
    whole = sum(weight.ds_numel for weight in engine.module.parameters())
    shards = sum(weight.ds_tensor.numel() for weight in engine.module.parameters())
    held = sum(weight.data.numel() for weight in engine.module.parameters() if not weight.ds_persist)
    assert held == 0 and shards <= whole / 2 + len(list(engine.module.parameters()))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.long
def test_two_ranks_hold_half_of_the_model_each(lone_store: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(two_ranks, (lone_store, str(tmp_path / "meet")), nprocs=2)


def test_a_course_of_another_seed_is_another_course(lone_store: Path) -> None:
    """Adapters are drawn by the seed of the order: the same on every rank, another one in another trial."""
    drawn = []
    for seed in (3, 3, 4):
        one = course(lone_store, LORA)
        torch.manual_seed(seed)
        model = add_adapters(load_model(Path(one.model.prefix_uri), "fp32"), one.spec.lora)
        built = build_engine(replace(one, order=replace(one.order, seed=seed)), 1)
        drawn.append(dict(model.named_parameters())["model.layers.0.self_attn.q_proj.lora_A.default.weight"].detach().clone())
        there = dict(built.module.named_parameters())["model.layers.0.self_attn.q_proj.lora_A.default.weight"]
        assert torch.equal(there, drawn[-1])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])

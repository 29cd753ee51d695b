"""Speed, the split of a step's time, goodput, the loss by source, the live line: each against a figure worked out another way."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from medschool.cluster.fit import parameters
from medschool.evaluate.perplexity import document_losses
from medschool.gauges import GAUGES
from medschool.recipe import load
from medschool.train.handout import HandOut
from medschool.train.live import Screen, duration, step_line
from medschool.train.loop import means, source_places, summed
from medschool.train.model import model_inputs, row_losses, targets_of
from medschool.train.throughput import Meter, Past, flops_per_token, past_of, peak_flops

ROOT = Path(__file__).parents[2]


def llama(tied: bool, **sizes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    }
    return LlamaForCausalLM(LlamaConfig(**{**shape, "vocab_size": 60, **sizes}, tie_word_embeddings=tied))


@pytest.mark.parametrize("tied", [True, False])
def test_the_work_of_a_token_is_what_torch_counts(tied: bool) -> None:
    """Torch's own counter sees 6 N, and in the attention 12 L H Q T, of one forward and backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    model, row = llama(tied), 48
    model.config._attn_implementation = "eager"  # sums of products that the counter sees
    tokens = torch.randint(0, 60, (1, row))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False).logits.float().sum().backward()
    norms = sum(weight.numel() for name, weight in model.named_parameters() if "norm" in name)  # no matrix product
    assert flops_per_token(model, row) == pytest.approx(counter.get_total_flops() / row + 6 * norms, rel=1e-6)


def test_the_work_of_a_token_is_palm_s_formula() -> None:
    """LLaMA-7B: 6 x (all weights but the looked-up table) + 12 x 32 layers x 32 heads x 128 x 2048 tokens, by hand."""
    shape = load(ROOT / "recipes" / "pmc_llama_7b.yaml").model.shape
    assert shape is not None
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape.model_dump(exclude_none=True)))
    by_hand = 6 * (parameters(shape) - 32_000 * 4096) + 12 * 32 * 32 * 128 * 2048
    assert flops_per_token(model, 2048) == by_hand and by_hand == pytest.approx(4.286e10, rel=1e-3)


def test_a_frozen_weight_takes_two_thirds() -> None:
    model = llama(True)
    whole = flops_per_token(model, 8)
    model.requires_grad_(False)
    attention = 12 * 2 * 4 * 8 * 8
    assert flops_per_token(model, 8) - attention == pytest.approx((whole - attention) * 4 / 6)


def test_a_peak_is_known_by_the_exact_name_in_bf16_and_else_not_at_all() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989.4e12
    for device, dtype in (("NVIDIA H100 80GB HBM3", "fp32"), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16"), ("cpu", "bf16")):
        assert peak_flops(device, dtype) is None


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr(time, "perf_counter", lambda: self.now)
        patch.setattr(time, "time", lambda: self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def lap(meter: Meter, clock: Clock, wait: float, step: float) -> dict[str, float]:
    clock.pass_(wait + step)
    return meter.lap(100, wait, step)


def test_every_second_of_a_lap_is_in_one_part(clock: Clock) -> None:
    meter = Meter(clock.now)
    with meter.part("start"):
        clock.pass_(7)
    meter.begin(Past(), 10.0, 1000.0)
    first = lap(meter, clock, 1, 3)
    assert (first["start_s"], first["data_wait_s"], first["step_s"], first["other_s"]) == (7, 1, 3, 0)
    assert first["tokens_per_s"] == 25 and first["mfu"] == 0.25 and first["goodput"] == pytest.approx(3 / 11)
    with meter.part("checkpoint"):
        clock.pass_(2)
    with meter.part("report"):
        clock.pass_(0.5)
    clock.pass_(0.25)  # nobody's
    second = lap(meter, clock, 0, 3)
    parts = {key: second[key] for key in ("checkpoint_s", "report_s", "other_s", "data_wait_s", "step_s")}
    assert parts == {"checkpoint_s": 2, "report_s": 0.5, "other_s": 0.25, "data_wait_s": 0, "step_s": 3}
    assert sum(parts.values()) == second["wall_s"] - first["wall_s"] and "start_s" not in second
    assert second["tokens_per_s"] == pytest.approx(100 / 5.75) and second["goodput"] == pytest.approx(6 / 16.75)
    assert "mfu" not in lap(Meter(clock.now), clock, 0, 1)


def test_steps_that_are_trained_again_count_as_lost_time(clock: Clock) -> None:
    """Ten steps of 2 s, a checkpoint after six, a kill; four again after a restart of 12 s: 20 of 20 + 8 + 12 s were to purpose."""
    began, journal = clock.now, []
    meter = Meter(began)
    for step in range(1, 11):
        journal.append({"step": step, "time_ms": 1000 * (clock.now + 2), **lap(meter, clock, 0, 2)})
    kept = journal[:6]
    clock.pass_(12)
    again = Meter(began)
    again.begin(past_of(kept, began), 0.0, None)
    for _ in range(4):
        last = lap(again, clock, 0, 2)
    assert last["wall_s"] == 40 and last["goodput"] == 20 / 40


def test_a_later_submission_goes_on_with_the_time_that_was_recorded(clock: Clock) -> None:
    meter = Meter(clock.now)
    kept = [{"step": step, "time_ms": 1000 * (clock.now + 2), **lap(meter, clock, 0, 2)} for step in (1, 2, 3)]
    clock.pass_(3600)  # nobody trains
    began = clock.now
    again = Meter(began)
    again.begin(past_of(kept, began), 0.0, None)
    clock.pass_(4)
    found = lap(again, clock, 0, 2)
    assert found["wall_s"] == 6 + 4 + 2 and found["goodput"] == 8 / 12


def test_the_loss_of_a_source_is_that_of_its_documents_alone() -> None:
    """Oracle: every document of every row by itself, without packing, added up by source with plain Python."""
    draw, model = np.random.default_rng(0), llama(True).eval()
    lengths = [[5, 3], [8], [1, 1, 6], [2, 6], [4, 4]]
    tokens = draw.integers(0, 60, (5, 8)).astype(np.uint16)
    rows, weights = ["books", "papers", "books", "", "general"], np.array([1, 1, 1, 0, 1])
    targets = targets_of(tokens, lengths, np.ones(tokens.shape, bool), weights)
    names = ("books", "general", "never", "papers")
    places = source_places(rows, names)
    losses = summed(places, row_losses(model, model_inputs(tokens, lengths), targets).detach())
    counts = summed(places, (targets != -100).sum(dim=1))
    expected: dict[str, list[float]] = {}
    for row, name in enumerate(rows):
        pieces = np.split(tokens[row], np.cumsum(lengths[row])[:-1])
        sums = expected.setdefault(name, [0.0, 0.0])
        sums[0] += sum(document_losses(model, pieces))
        sums[1] += sum(len(piece) - 1 for piece in pieces)
    found = means(names, losses, counts)
    assert sorted(found) == ["books", "general", "papers"]
    assert found == pytest.approx({name: expected[name][0] / expected[name][1] for name in found}, rel=1e-5)


def test_a_row_that_is_no_number_spoils_its_own_source_alone() -> None:
    places = source_places(["books", "papers", "books"], ("books", "papers"))
    assert summed(places, torch.tensor([1.0, float("nan"), 2.0])).tolist()[0] == 3.0


def test_the_line_says_what_is_not_as_it_should_be_and_no_more(clock: Clock) -> None:
    meter = Meter(clock.now)
    meter.begin(Past(), 0.0, None)
    lap(meter, clock, 0.0, 2.0)
    assert step_line(3, 63, 1.5, 1e-4, meter, 0, None) == "step 3/63  loss 1.5000  lr 1.00e-04  50 tokens/s  2 min left"
    lap(meter, clock, 1.0, 2.0)
    assert step_line(63, 63, 1.5, 1e-4, meter, 2, 0.87) == (
        "step 63/63  loss 1.5000  lr 1.00e-04  40 tokens/s  waiting for data 20%  skipped 2  goodput 87%"
    )


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 0 min"), (7980, "2 h 13 min"), (273600, "3 d 4 h")]
)
def test_time_left_in_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(text: str) -> list[str]:
    """The lines that a terminal shows after it was sent `text`: up one line, and clear it, is all it is asked to do."""
    lines = [""]
    for part in text.replace("\x1b[1A\x1b[2K", "\0").replace("\n", "\n\1").split("\1"):
        for number, piece in enumerate(part.split("\0")):
            if number:
                lines = [*lines[:-2], ""]
            lines[-1] += piece.rstrip("\n")
        if part.endswith("\n"):
            lines.append("")
    return lines[:-1]


def test_a_terminal_keeps_one_line_a_training_and_a_log_keeps_all() -> None:
    lines = [
        "[1/9] pretrain  run",
        "      step 1/2  loss 2.0",
        "      step 2/2  loss 1.0",
        "a  step 1/2  loss 3.0",
        "b  step 1/2  loss 3.5",
        "done",
    ]
    terminal, log = Terminal(), io.StringIO()
    for out in (terminal, log):
        screen = Screen(out)
        for line in lines:
            screen(line)
    assert log.getvalue().splitlines() == lines
    assert shown(terminal.getvalue()) == [lines[0], *lines[2:]]


def handed(measure: Callable[[int, str], None], run: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> list[str]:
    """What is said while copies are handed out after `steps`; the copy itself is one small file."""
    from medschool.train import handout

    def write(module: Any, weights: dict[str, Any], base: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_text(str(weights["step"]))

    said: list[str] = []
    monkeypatch.setattr(handout, "write_model", write)
    monkeypatch.setattr(handout, "model_copy", lambda model: run)
    engine: Any = SimpleNamespace(module=None, zero_optimization_stage=lambda: 1)
    recipe = SimpleNamespace(evaluate=SimpleNamespace(heldout_every_steps=1))
    course: Any = SimpleNamespace(recipe=recipe, steps=99, run_uri=str(run), model=None)
    scratch = run / "scratch"
    scratch.mkdir()
    with HandOut(engine, course, 0, scratch, measure, said.append) as hand_out:
        for step in steps:
            monkeypatch.setattr(handout, "weights_on_cpu", lambda module, partitioned, keep, step=step: {"step": step})
            assert hand_out.due(step)
            hand_out.give(step)
            time.sleep(0.05)
        deadline = time.monotonic() + 5
        while (list((run / "handout").glob("*")) or list((scratch / "handout").glob("*"))) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert not hand_out.due(99)
    return said


def test_a_slow_measurement_holds_nobody_up_and_the_newest_copy_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str]] = []

    def slow(step: int, uri: str) -> None:
        assert len(list(Path(uri).parent.iterdir())) == 1, "one copy in the store"
        time.sleep(0.4)
        seen.append((step, Path(uri, "model.safetensors").read_text()))

    began = time.monotonic()
    said = handed(slow, tmp_path, monkeypatch, [1, 2, 3, 4])
    assert seen == [(1, "1"), (4, "4")] and said == [] and time.monotonic() - began < 3
    assert not list((tmp_path / "handout").glob("*"))


def test_a_measurement_that_fails_is_said_and_the_next_one_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(step: int, uri: str) -> None:
        if step == 1:
            raise RuntimeError("no memory")

    said = handed(failing, tmp_path, monkeypatch, [1, 2])
    assert said == ["held-out loss at step 1 was not measured: RuntimeError: no memory"]


def test_a_gauge_is_fed_by_what_the_journal_has(clock: Clock) -> None:
    measured = {
        "step",
        "loss",
        "lr",
        "grad_norm",
        "mfu",
        "rss_bytes",
        "accelerator_peak_bytes",
        "planned_steps",  # of the course, not of the journal
        "skipped_batches",
        "failed_checkpoints",
        *lap(Meter(clock.now), clock, 0, 1),
    }
    assert set(GAUGES) <= measured

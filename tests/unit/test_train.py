"""The model's mask and loss against documents run alone, the schedule, and the checkpoints, with a tiny random LLaMA."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from medschool import storage
from medschool.artifact import write_file
from medschool.cluster.fit import parameters, shape_of
from medschool.errors import InputError, StorageError
from medschool.evaluate.perplexity import document_losses
from medschool.recipe import load
from medschool.train.checkpoint import (
    Position,
    State,
    commit_state,
    fetch_state,
    newest_whole,
    prune_states,
    read_state,
    state_prefix,
)
from medschool.train.model import check_model_files, load_model, model_inputs, summed_loss, targets_of
from medschool.train.schedule import lr_factor
from medschool.train.zero import deepspeed_config

ROOT = Path(__file__).parents[2]
LENGTHS = [[5, 3], [8], [1, 1, 6]]


def tiny(attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=60,
        max_position_embeddings=64, attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60, (3, 8)).astype(np.uint16)


def test_the_summed_loss_is_that_of_the_documents_alone(tokens: np.ndarray) -> None:
    model = tiny()
    packed = summed_loss(
        model, model_inputs(tokens, LENGTHS), targets_of(tokens, LENGTHS, np.ones(tokens.shape, bool), np.ones(3))
    )
    pieces = [piece for row, lengths in enumerate(LENGTHS) for piece in np.split(tokens[row], np.cumsum(lengths)[:-1])]
    assert float(packed) == pytest.approx(sum(document_losses(model, pieces)), rel=1e-5)


def test_only_trained_tokens_are_targets_and_each_is_predicted_from_the_one_before(tokens: np.ndarray) -> None:
    trained = np.random.default_rng(3).random(tokens.shape) < 0.5
    targets = targets_of(tokens, LENGTHS, trained, np.ones(3)).numpy()
    for row, lengths in enumerate(LENGTHS):
        starts = {sum(lengths[:piece]) for piece in range(len(lengths))}
        for place in range(tokens.shape[1]):
            follows = place + 1 < tokens.shape[1] and place + 1 not in starts and trained[row, place + 1]
            assert targets[row, place] == (tokens[row, place + 1] if follows else -100)


def test_a_row_without_weight_has_no_targets(tokens: np.ndarray) -> None:
    targets = targets_of(tokens, LENGTHS, np.ones(tokens.shape, bool), np.array([1.0, 0.0, 1.0]))
    assert (targets[1] == -100).all() and (targets[0] != -100).sum() == 6 and (targets[2] != -100).sum() == 5


def test_document_losses_equal_one_document_at_a_time() -> None:
    model, draw = tiny(), np.random.default_rng(1)
    documents = [draw.integers(0, 60, length).astype(np.uint16) for length in (9, 1, 30, 2, 17)]
    for document, loss in zip(documents, document_losses(model, documents), strict=True):
        ids = torch.from_numpy(document.astype(np.int64))[None]
        logp = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
        assert loss == pytest.approx(-sum(float(logp[t, ids[0, t + 1]]) for t in range(len(document) - 1)), rel=1e-5)


def test_the_first_step_is_not_zero_and_the_last_is_the_floor() -> None:
    factors = [lr_factor(step, 10, 0.2, 0.1) for step in range(10)]
    assert factors[0] == 0.5 and factors[1] == 1.0 == max(factors)
    assert factors[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[1:]))
    assert lr_factor(0, 1, 0.0, 0.1) == 1.0


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 20])
def test_deepspeed_gets_numbers_that_multiply_up(world: int) -> None:
    recipe = load(ROOT / "recipes" / "quickstart.yaml")
    for phase, rows, most in (("pretrain", 20, 5), ("instruct", 8, 2)):
        config = deepspeed_config(recipe, phase, world)
        micro, accumulation = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
        assert micro * accumulation * world == config["train_batch_size"] >= rows
        assert 1 <= micro <= most


def test_the_parameter_count_is_the_model_s() -> None:
    model = tiny()
    assert parameters(shape_of(model.config.to_dict(), "config.json")) == sum(weight.numel() for weight in model.parameters())
    published = {"7b": 6_738_415_616, "13b": 13_015_864_320}  # LLaMA's released checkpoints
    for size, count in published.items():
        shape = load(ROOT / "recipes" / f"pmc_llama_{size}.yaml").model.shape
        assert shape and parameters(shape) == count


def test_only_safetensors_are_loaded(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    assert load_model(tmp_path, "bf16").dtype == torch.bfloat16
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin, which are pickles"):
        load_model(tmp_path, "bf16")
    with pytest.raises(InputError, match=r"no config\.json"):
        check_model_files(["model.safetensors"], "x")


def saved(run: str, step: int, attempt: str = "a") -> State:
    prefix = state_prefix(run, step, attempt)
    state = State(Position(step, step), 2, 1, prefix, (write_file(prefix, "state/x.pt", f"state {step}".encode()),))
    assert commit_state(run, state)
    return state


def test_the_newest_whole_state_is_found(tmp_path: Path) -> None:
    run, said = str(tmp_path), []
    assert newest_whole(run, said.append) == Position()
    saved(run, 5)
    newest = saved(run, 10)
    write_file(state_prefix(run, 15, "torn"), "state/x.pt", b"no manifest")
    found = newest_whole(run, said.append)
    assert (found.step, found.batch_index) == (10, 10)
    assert fetch_state(read_state(found.state_uri), tmp_path / "local").joinpath("state/x.pt").read_bytes() == b"state 10"
    Path(newest.prefix_uri, "state/x.pt").write_bytes(b"stat")
    assert newest_whole(run, said.append).step == 5
    assert any("passed over" in line for line in said)


def test_a_flipped_bit_is_found_before_loading(tmp_path: Path) -> None:
    state = saved(str(tmp_path), 5)
    path = Path(state.prefix_uri, "state/x.pt")
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="sha256"):
        fetch_state(state, tmp_path / "local")


def test_a_step_is_committed_once(tmp_path: Path) -> None:
    state = saved(str(tmp_path), 5)
    other = state_prefix(str(tmp_path), 5, "b")
    write_file(other, "state/x.pt", b"state 5")
    assert not commit_state(str(tmp_path), dataclasses.replace(state, prefix_uri=other))
    assert read_state(newest_whole(str(tmp_path), lambda _: None).state_uri) == state


def test_old_states_are_pruned_whole(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        saved(str(tmp_path), step)
    prune_states(str(tmp_path))
    left = {info.uri.split("/state/")[1].split("/")[0] for info in storage.list_files(str(tmp_path))}
    assert left == {"00000002", "00000003"}


def test_a_store_that_fails_is_not_a_fresh_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(str(tmp_path), 5)

    def busy(uri: str) -> bytes:
        raise StorageError("SlowDown", "try again", uri)

    monkeypatch.setattr(storage, "read_bytes", busy)
    with pytest.raises(StorageError):
        newest_whole(str(tmp_path), lambda _: None)


def test_a_step_whose_state_was_torn_can_be_saved_again(tmp_path: Path) -> None:
    torn = saved(str(tmp_path), 5)
    Path(torn.prefix_uri, "state/x.pt").write_bytes(b"st")
    assert newest_whole(str(tmp_path), lambda _: None) == Position()
    again = saved(str(tmp_path), 5, "b")
    assert newest_whole(str(tmp_path), lambda _: None).step == 5 and read_state_of(tmp_path) == again


def read_state_of(run: Path) -> State:
    return read_state(newest_whole(str(run), lambda _: None).state_uri)

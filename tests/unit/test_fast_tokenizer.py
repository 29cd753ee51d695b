"""The fast tokenizer is used when all its ids are those of the library that models are trained with, and else it is not."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gigatoken
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from medschool.tokens.fast import EDGE_CASES, fast_encode, open_gate
from medschool.tokens.tokenizer import load_tokenizer

SYLLABLES = ["car", "di", "o", "my", "pa", "thy", "neph", "ro", "sis", "he", "pat", "ic", "the", "of", "a", "with", "gas", "tr"]


def texts(count: int) -> list[str]:
    draw = random.Random(4)
    word = lambda: "".join(draw.choices(SYLLABLES, k=draw.randint(1, 4)))  # noqa: E731
    return [
        " ".join(word() for _ in range(draw.randint(5, 60))) + draw.choice([".", " (95% CI 1.2-3.4).", "\n\nIL-2"])
        for _ in range(count)
    ]


def saved(folder: Path, raw: dict[str, Any], eos: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return folder


def llama_format() -> dict[str, Any]:
    """A small tokenizer of LLaMA's format: BPE over whole texts, spaces as U+2581, unknown characters as bytes."""
    tool = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tool.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tool.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    tool.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tool.train_from_iterator(texts(300), trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False))
    raw: dict[str, Any] = json.loads(tool.to_str())
    return raw | {"pre_tokenizer": None, "added_tokens": raw["added_tokens"][:3]}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"), llama_format(), "</s>")


def test_the_gate_opens_for_a_llama_vocabulary_and_says_what_it_compared(llama: Path) -> None:
    sample = texts(50)
    gate = open_gate(llama, load_tokenizer(llama), sample)
    assert gate.used and gate.documents == 50, gate.reason
    assert str(gate) == f"used: ids equal on 50 documents and {len(EDGE_CASES)} edge cases"


LACKING = "\x04\x13"


@pytest.fixture(scope="module")
def digits_apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer like SmolLM2's: bytes of GPT-2's words, each digit alone, and no token for some control characters."""
    tool = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tool.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    tool.decoder = decoders.ByteLevel()
    alphabet = set(pre_tokenizers.ByteLevel.alphabet()) - {words.pre_tokenize_str(char)[0][0] for char in LACKING}
    options = {"vocab_size": 900, "special_tokens": ["<eos>"], "show_progress": False, "initial_alphabet": sorted(alphabet)}
    tool.train_from_iterator(texts(300), trainers.BpeTrainer(**options))
    return saved(tmp_path_factory.mktemp("digits"), json.loads(tool.to_str()), "<eos>")


ODD = st.text("0789²½٣४Ⅷ\u3007一\U0001d7d8𝛽\U00012400\U00020000👍aé \n\u2028'ś" + LACKING, max_size=30)


@pytest.mark.parametrize("vocabulary", ["llama", "digits_apart"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(st.text(max_size=60) | ODD | st.sampled_from(texts(9)), max_size=6))
def test_both_ways_agree_on_any_text(request: pytest.FixtureRequest, vocabulary: str, written: list[str]) -> None:
    folder = request.getfixturevalue(vocabulary)
    fast, slow = fast_encode(folder)(written), load_tokenizer(folder).encode(written)
    assert [ids.tolist() for ids in fast] == [ids.tolist() for ids in slow]
    assert all(ids.dtype == np.uint16 for ids in fast)


def test_every_character_alone_and_between_digits_is_encoded_alike(digits_apart: Path) -> None:
    """A character that one way takes for a digit and the other does not would show here."""
    chars = [chr(code) for code in range(0x20100) if not 0xD800 <= code < 0xE000]
    written = [f" {''.join(some)}1{'2'.join(some)}" for some in (chars[start : start + 64] for start in range(0, len(chars), 64))]
    fast, slow = fast_encode(digits_apart)(written), load_tokenizer(digits_apart).encode(written)
    assert [ids.tolist() for ids in fast] == [ids.tolist() for ids in slow]


def test_the_gate_opens_where_digits_stand_alone(digits_apart: Path) -> None:
    assert open_gate(digits_apart, load_tokenizer(digits_apart), texts(50)).used


def test_a_control_token_in_a_text_stays_text(llama: Path) -> None:
    tool, text = load_tokenizer(llama), "a </s> b <s>"
    ids = fast_encode(llama)([text])[0]
    assert tool.eos_id not in ids and tool.decode([ids.tolist()]) == [text]
    ids_as_it_comes = gigatoken.Tokenizer.from_json((llama / "tokenizer.json").read_text()).encode(text)
    assert tool.eos_id in ids_as_it_comes  # what taking them out of the file is for


def test_one_different_id_closes_the_gate(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, victim = fast_encode(llama), texts(30)[17]

    def one_off(written: list[str]) -> list[np.ndarray]:
        return [ids + (text == victim) for text, ids in zip(written, honest(written), strict=True)]

    monkeypatch.setattr("medschool.tokens.fast.fast_encode", lambda folder: one_off)
    gate = open_gate(llama, load_tokenizer(llama), texts(30))
    assert not gate.used and gate.documents == 30
    assert gate.reason == f"ids differ for a text that begins with {victim[:20]!r}"


def the_first_merges_come_last(raw: dict[str, Any]) -> dict[str, Any]:
    merges = raw["model"]["merges"]
    return raw | {"model": raw["model"] | {"merges": [*merges[50:], *merges[:50]]}}


def text_is_lowered(raw: dict[str, Any]) -> dict[str, Any]:
    return raw | {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *raw["normalizer"]["normalizers"]]}}


@pytest.mark.parametrize("change", [the_first_merges_come_last, text_is_lowered])
def test_another_tokenizer_than_the_job_s_is_never_used(
    llama: Path, tmp_path: Path, change: Callable[..., dict[str, Any]]
) -> None:
    other = saved(tmp_path / "other", change(json.loads((llama / "tokenizer.json").read_text())), "</s>")
    gate = open_gate(llama, load_tokenizer(other), texts(30))
    assert not gate.used and gate.reason.startswith("ids differ")


def test_a_vocabulary_without_single_bytes_is_refused_in_one_line(tmp_path: Path) -> None:
    tool = Tokenizer(models.BPE())
    tool.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tool.decoder = decoders.ByteLevel()
    tool.train_from_iterator(texts(100), trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], show_progress=False))
    folder = saved(tmp_path / "bytes", json.loads(tool.to_str()), "<eos>")
    gate = open_gate(folder, load_tokenizer(folder), texts(5))
    assert not gate.used and gate.documents == 0
    assert "gigatoken refuses this vocabulary" in str(gate) and "\n" not in str(gate)


def test_without_gigatoken_the_ordinary_way_is_taken(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medschool.tokens import fast

    fast._fast_encode.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gigatoken", None)
    gate = open_gate(llama, load_tokenizer(llama), texts(5))
    assert str(gate) == "not used: gigatoken is not installed (the extra `fast`)"

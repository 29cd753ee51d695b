"""The fast tokenizer is used when all its ids are those of the library that models are trained with, and else it is not."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gigatoken
import numpy as np
import pytest
from hypothesis import given, settings
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


@settings(max_examples=60, deadline=None)
@given(written=st.lists(st.text(max_size=60), max_size=5))
def test_both_ways_agree_on_any_text(llama: Path, written: list[str]) -> None:
    fast, slow = fast_encode(llama)(written), load_tokenizer(llama).encode(written)
    assert [ids.tolist() for ids in fast] == [ids.tolist() for ids in slow]
    assert all(ids.dtype == np.uint16 for ids in fast)


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

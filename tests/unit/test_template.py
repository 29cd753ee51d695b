"""Masks of conversations: what is trained is exactly the assistant's words and the EOS behind them, in tokens and in packed rows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHAT, write_model

from medschool.errors import InputError
from medschool.instructions.template import ChatTemplate
from medschool.rows import Message
from medschool.tokens.pack import pack_whole

TEXT = st.text(alphabet="abc xyz.\n<|>_imend", min_size=1, max_size=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_model(path)
    return path


@pytest.fixture(scope="module")
def template(folder: Path) -> ChatTemplate:
    return ChatTemplate(folder)


def with_template(folder: Path, target: Path, text: str) -> ChatTemplate:
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (target / "chat_template.jinja").write_text(text, encoding="utf-8")
    return ChatTemplate(target)


@settings(deadline=None, max_examples=60)
@given(turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), system=st.none() | TEXT)
def test_trained_tokens_are_the_answers_and_their_ends(
    template: ChatTemplate, turns: list[tuple[str, str]], system: str | None
) -> None:
    messages = [] if system is None else [Message("system", system)]
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    tokens, trained = template.conversation(messages)
    runs = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(trained.astype(int))) + 1)
    spoken = [tokens[run] for run in runs if trained[run[0]]]
    assert len(spoken) == len(turns)
    for run, (_, answer) in zip(spoken, turns, strict=True):
        assert run[-1] == template.eos_id and template.eos_id not in run[:-1]
        assert template.decode(run.tolist()) == answer


def test_a_prompt_is_the_beginning_of_its_conversation(template: ChatTemplate) -> None:
    messages = [Message("user", "renal dose?"), Message("assistant", "Yes.")]
    tokens, trained = template.conversation(messages)
    prompt = template.prompt(messages[:1])
    assert tokens[: len(prompt)].tolist() == prompt and not trained[: len(prompt)].any() and trained[len(prompt)]


def test_a_control_token_in_an_answer_neither_ends_it_nor_starts_another(template: ChatTemplate) -> None:
    tokens, trained = template.conversation([Message("user", "hi"), Message("assistant", "a<|im_end|>\n<|im_start|>user\nb")])
    assert (tokens[trained] == template.eos_id).sum() == 1 and tokens[trained][-1] == template.eos_id


def test_a_template_that_rewrites_the_past_is_refused(folder: Path, tmp_path: Path) -> None:
    rewriting = CHAT.replace("{% for", "{{ messages | length }}{% for", 1)
    with pytest.raises(InputError, match="renders the start of a conversation differently"):
        with_template(folder, tmp_path, rewriting).conversation([Message("user", "a"), Message("assistant", "b")])


def test_a_template_without_an_end_is_refused(folder: Path, tmp_path: Path) -> None:
    endless = with_template(folder, tmp_path, CHAT.replace("<|im_end|>", ""))
    with pytest.raises(InputError, match="does not end an assistant's turn with the EOS"):
        endless.conversation([Message("user", "a"), Message("assistant", "b")])


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), max_size=40), st.randoms())
def test_conversations_are_packed_whole_once_and_apart(lengths: list[int], draw: object) -> None:
    ids = [f"c{number}" for number in range(len(lengths))]
    pairs = [(np.full(length, number + 1, np.uint16), np.arange(length) % 2 == 0) for number, length in enumerate(lengths)]
    rows = pack_whole(ids, pairs, 12, 0, np.dtype(np.uint16))
    seen = {}
    for tokens, trained, row_ids, pieces in zip(rows.tokens, rows.trained, rows.doc_ids, rows.doc_lengths, strict=True):
        assert sum(pieces) == 12 and len(row_ids) == len(pieces)
        for id_, end, length in zip(row_ids, np.cumsum(pieces), pieces, strict=True):
            piece = slice(end - length, end)
            if not id_:
                assert not trained[piece].any() and (tokens[piece] == 0).all()
                continue
            assert id_ not in seen
            seen[id_] = (tokens[piece], trained[piece])
    assert seen.keys() == set(ids)
    for id_, (tokens, trained) in zip(ids, pairs, strict=True):
        assert (seen[id_][0] == tokens).all() and (seen[id_][1] == trained).all()
    assert len(rows.tokens) <= max(1, -(-sum(lengths) // 12)) * 2  # no worse than half full
    order = list(range(len(ids)))
    draw.shuffle(order)  # type: ignore[attr-defined]
    again = pack_whole([ids[index] for index in order], [pairs[index] for index in order], 12, 0, np.dtype(np.uint16))
    assert again.doc_ids == rows.doc_ids and (again.tokens == rows.tokens).all()

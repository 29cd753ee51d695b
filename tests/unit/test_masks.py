"""Masks of six templates against a slow oracle that follows every byte: whole, cut to a row, and packed."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import PMC_LLAMA, SPECIAL, TEMPLATES, oracle_mask, save_sentencepiece, save_tokenizer

from medschool.errors import InputError
from medschool.instructions.mask import shortened
from medschool.instructions.template import ChatTemplate, RefusedError
from medschool.rows import Message
from medschool.tokens.pack import pack_whole

Load = Callable[..., ChatTemplate]
TEXT = st.text(alphabet="ab rd.:#/(]\né😀", min_size=1, max_size=14).filter(lambda text: bool(text.strip()))
ANSWER = TEXT | st.sampled_from(["###Answer: OPTION B IS CORRECT.", ":# a", "//", "](", "\n\nb", "é", " a "])
ROW_TOKENS = 90


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A template by name, with a tokenizer of its own; made once."""
    made: dict[tuple[str, bool], ChatTemplate] = {}

    def of(name: str, trim_offsets: bool = False) -> ChatTemplate:
        if (name, trim_offsets) not in made:
            folder = tmp_path_factory.mktemp(name)
            text, eos, _ = TEMPLATES[name]
            save_tokenizer(folder, text, eos, trim_offsets)
            made[name, trim_offsets] = ChatTemplate(folder)
        return made[name, trim_offsets]

    return of


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_sentencepiece(folder)
    return folder


@cache
def names_of(template: ChatTemplate) -> list[str]:
    return [str(name) for name in template._raw.convert_ids_to_tokens(range(len(template._raw)))]


@st.composite
def conversations(draw: st.DrawFn, system: bool = True) -> list[Message]:
    messages = [Message("system", draw(TEXT))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        asked = draw(TEXT) + draw(st.sampled_from(["", "\n\n" + "a b"]))
        messages += [Message("user", asked), Message("assistant", draw(ANSWER))]
    return messages


@pytest.mark.parametrize("turns", ["all", "last"])
@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_masks_are_those_of_the_oracle(load: Load, name: str, trim_offsets: bool, turns: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(system=name != "mistral"))
    template = load(name, trim_offsets)
    found = template.masked(messages, turns)  # type: ignore[arg-type]
    assert found.trained == oracle_mask(found.ids, TEMPLATES[name][2](messages), names_of(template), turns)
    for place, message in enumerate(messages):
        if message.role == "assistant":  # what serving is given is how training begins
            prompt = template.prompt(messages[:place])
            assert found.ids[: len(prompt)] == prompt


def test_no_token_straddles_the_border_of_an_answer(load: Load) -> None:
    """Encoded as one, the same text has the token `:#`, half prompt and half answer."""
    template = load("pmc_llama")
    messages = [Message("user", "a"), Message("assistant", "###Answer: OPTION B IS CORRECT.")]
    found, names = template.masked(messages), names_of(template)
    whole = template._raw.backend_tokenizer.encode(template._write(messages, False), add_special_tokens=False)
    shared = [token for token in whole.tokens if token.startswith(":#")]
    assert shared and not [token for token in found.ids if names[token] in shared]
    first = found.trained.index(True)
    assert names[found.ids[first - 1]].endswith(":") and names[found.ids[first]].startswith("#")


def test_a_tokenizer_that_looks_ahead_cuts_the_prompt_as_serving_does(load: Load) -> None:
    """GPT-2's expression makes one token of the two newlines that end a prompt, and two where a word follows."""
    template = load("llama_3")
    messages = [Message("user", "a"), Message("assistant", "b")]
    whole = template._raw.backend_tokenizer.encode(template._write(messages, False), add_special_tokens=False).ids
    prompt, found = template.prompt(messages[:1]), template.masked(messages)
    assert whole[: len(prompt)] != prompt == found.ids[: found.trained.index(True)]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_packed_and_cut_masks_are_those_of_the_oracle(load: Load, name: str, data: st.DataObject) -> None:
    template, names = load(name), names_of(load(name))
    wanted, pairs = {}, []
    for number in range(4):
        messages = data.draw(conversations(system=name != "mistral"))
        messages[-2] = Message("user", messages[-2].content + " rd" * data.draw(st.integers(0, 60)))
        kept = shortened(messages, lambda some: len(template.masked(some).ids) <= ROW_TOKENS)
        if kept:
            found = template.masked(kept)
            pairs.append((np.array(found.ids, np.uint16), np.array(found.trained)))
            wanted[f"c{number}"] = oracle_mask(found.ids, TEMPLATES[name][2](kept), names)
    rows = pack_whole(list(wanted), pairs, ROW_TOKENS, template.eos_id, np.dtype(np.uint16))
    seen = {}
    for mask, ids, lengths in zip(rows.trained, rows.doc_ids, rows.doc_lengths, strict=True):
        for id_, end, length in zip(ids, np.cumsum(lengths), lengths, strict=True):
            seen[id_ or "padding"] = mask[end - length : end].tolist()
    padding = seen.pop("padding", [])
    assert seen == wanted and not any(padding)


def slow_shortened(messages: list[Message], fits: Callable[[list[Message]], bool]) -> tuple[Message, ...] | None:
    """Every way to shorten, longest first, as shortened says it."""
    system = [message for message in messages if message.role == "system"]
    turns = messages[len(system) :]
    ways = [system + turns[place:] for place in range(0, len(turns), 2)]
    question, answer = turns[-2:]
    head, blank, context = question.content.partition("\n\n")
    if not blank:
        head, context = "", question.content
    for found in re.finditer(r"\s(?=\S)", context):
        ways.append([*system, Message("user", head + blank + context[found.end() :]), answer])
    return next((tuple(way) for way in ways if fits(way)), None)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), st.integers(1, 60), st.booleans())
def test_what_is_cut_is_as_little_as_possible(sizes: list[tuple[int, int]], room: int, system: bool) -> None:
    messages = [Message("system", "s " * 3)] if system else []
    for asked, answered in sizes:
        messages += [Message("user", "Say.\n\n" + " ".join("q" * asked)), Message("assistant", "a " * answered)]

    def fits(some: object) -> bool:
        return sum(len(message.content.split()) for message in some) <= room  # type: ignore[attr-defined]

    kept = shortened(messages, fits)
    assert kept == slow_shortened(messages, fits)
    if kept:
        assert kept[-1] == messages[-1] and [m for m in kept if m.role == "system"] == messages[: int(system)]


def test_a_llama_without_a_template_is_refused_and_works_with_the_papers(llama: Path) -> None:
    with pytest.raises(InputError, match="no chat_template") as refused:
        ChatTemplate(llama)
    assert "chats.template: pmc_llama" in refused.value.remedy
    template = ChatTemplate(llama, "pmc_llama")
    for answer in ("###Answer: OPTION B IS CORRECT.", "Renal dose.", "é </s> b"):
        messages = [
            Message("user", "a </s> b\n\nc"),
            Message("assistant", answer),
            Message("user", "d"),
            Message("assistant", "e"),
        ]
        found = template.masked(messages)
        runs = [[token for token, _ in group] for group in spans(found.ids, found.trained)]
        assert [template.decode(run[:-1]).strip() for run in runs] == [answer, "e"]
        assert [run[-1] for run in runs] == [template.eos_id] * 2 == [token for token in found.ids if token == template.eos_id]
        for place in (1, 3):
            prompt = template.prompt(messages[:place])
            assert found.ids[: len(prompt)] == prompt and found.trained[len(prompt)]


def spans(ids: list[int], trained: list[bool]) -> list[list[tuple[int, bool]]]:
    runs: list[list[tuple[int, bool]]] = []
    before = False
    for token, flag in zip(ids, trained, strict=True):
        if flag:
            runs = runs if before else [*runs, []]
            runs[-1].append((token, flag))
        before = flag
    return runs


def test_the_papers_prompt_word_for_word(llama: Path) -> None:
    """The text as it is quoted from SFT/train.py, with and without an input."""
    template = ChatTemplate(llama, "pmc_llama")
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\nDo.\n\n### Input:\nThis.\n\nThat.\n\n### Response:"
    )
    without = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo.\n\n### Response:"
    )
    assert template._write([Message("user", "Do.\n\nThis.\n\nThat.")], True) == with_input
    assert template._write([Message("user", "Do.")], True) == without
    assert template._write([Message("user", "Do."), Message("assistant", "Done.")], False) == without + "Done.</s>"
    assert template._write([Message("system", "Be kind."), Message("user", "Do.")], True) == "Be kind.\n\n" + without
    more = [Message("user", "Do."), Message("assistant", "Done."), Message("user", "More.\n\nOf it.")]
    assert template._write(more, True) == without + "Done.</s>\n\n### Instruction:\nMore.\n\n### Input:\nOf it.\n\n### Response:"


def test_a_named_template_takes_the_place_of_the_models_own_and_of_none(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, TEMPLATES["chatml"][0], "</s>")
    named = ChatTemplate(tmp_path, "pmc_llama")
    (tmp_path / "chat_template.jinja").write_text(PMC_LLAMA, encoding="utf-8")  # as the export writes it
    messages = [Message("user", "a\n\nb"), Message("assistant", "c")]
    assert ChatTemplate(tmp_path).masked(messages) == named.masked(messages)
    assert named._write(messages, False).startswith("Below is an instruction")


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=15)
@given(words=st.lists(st.sampled_from([*SPECIAL, "a", " ", "\n", "<|im_", "end|>", "\U000f0000"]), min_size=1, max_size=6))
def test_names_of_control_tokens_in_messages_are_text(load: Load, name: str, words: list[str]) -> None:
    template, said = load(name), "x" + "".join(words) + "y"
    messages = [Message("user", said), Message("assistant", said)]
    ids = template.masked(messages).ids
    assert template.control_tokens(ids) == template.control_tokens(
        template.masked([Message("user", "x"), Message("assistant", "x")]).ids
    )
    assert said.replace("\U000f0000", "") in template.decode(ids)
    theirs = template._raw.apply_chat_template(
        [vars(messages[0])], add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
    )
    assert template.prompt(messages[:1]) == list(theirs)


def test_a_template_that_rewrites_earlier_turns_can_train_the_last_one(tmp_path: Path) -> None:
    hiding = TEMPLATES["chatml"][0].replace(
        "message['content'] +", "(message['content'] if loop.last or message['role'] == 'user' else '...') +"
    )
    save_tokenizer(tmp_path, hiding, "<|im_end|>")
    template = ChatTemplate(tmp_path)
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    with pytest.raises(InputError, match="renders the start of a conversation differently") as refused:
        template.masked(messages)
    assert "trained_turns: last" in refused.value.remedy
    found = template.masked(messages, "last")
    assert template.decode([token for token, flag in zip(found.ids, found.trained, strict=True) if flag]) == "d"


def test_what_a_template_refuses_is_one_conversation(load: Load) -> None:
    with pytest.raises(RefusedError, match="no system turns"):
        load("mistral").masked([Message("system", "a"), Message("user", "b"), Message("assistant", "c")])

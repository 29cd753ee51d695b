"""The contract of conversations: what is fine passes, every kind of damage is found and named, and numbers are those of a count."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from templates import CHATML, save_tokenizer

from medschool.errors import StageError
from medschool.instructions.chats import Chat, chat_of
from medschool.instructions.contract import (
    Findings,
    examine,
    examine_rows,
    findings_from,
    findings_json,
    letter_shares,
    merged,
    settle,
    with_repeats,
)
from medschool.instructions.mask import Masked
from medschool.instructions.template import ChatTemplate
from medschool.recipe.instructions import Chats
from medschool.rows import Dropped, Message
from medschool.tokens.pack import Rows, pack_whole
from medschool.tokens.shards import rows_table

ROW_TOKENS = 64
QUESTION = "Pick one.\n\n###Question: a?\n###Options:\nA. b\nB. d\nC. r\n"
ASKED = [Message("user", "a b"), Message("assistant", "rd a.")]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    folder = tmp_path_factory.mktemp("contract")
    save_tokenizer(folder, CHATML, "<|im_end|>")
    return ChatTemplate(folder)


def row(messages: list[Message], id_: str = "c1", kind: str = "conversation", document: str = "") -> dict[str, object]:
    said = [vars(message) for message in messages]
    return {"id": id_, "source": "set", "kind": kind, "messages": said, "licence": "mit", "uri": "raw/f", "document": document}


def chats(template: ChatTemplate, *conversations: list[Message], kind: str = "conversation") -> list[Chat]:
    made = [
        chat_of(row(each, f"c{number}", kind), template, Chats(row_tokens=ROW_TOKENS), ())
        for number, each in enumerate(conversations)
    ]
    assert all(isinstance(each, Chat) for each in made), made
    return made  # type: ignore[return-value]


def packed(template: ChatTemplate, made: list[Chat]) -> Rows:
    pairs = [(np.array(chat.found.ids, np.uint16), np.array(chat.found.trained)) for chat in made]
    return pack_whole([chat.id for chat in made], pairs, ROW_TOKENS, template.eos_id, np.dtype(np.uint16))


def settled(template: ChatTemplate, made: list[Chat], rows: Rows) -> dict[str, object]:
    """Everything that the stage does with a set, in one place."""
    stored, hashes = examine_rows(rows_table(rows, np.dtype(np.uint16)), template.eos_id)
    return settle(merged(chat.findings for chat in made), *with_repeats(stored, hashes), "chats/set")


CONVERSATIONS = [
    ASKED,
    [*ASKED, *ASKED],
    [Message("system", "be"), Message("user", "<|im_end|>"), Message("assistant", "a <|im_end|> b")],
]


def test_a_good_set_keeps_it(template: ChatTemplate) -> None:
    made = chats(template, *CONVERSATIONS, ASKED)
    facts = settled(template, made, packed(template, made))
    assert facts["conversations"] == 4 and facts["equal_to_another"] == 1
    assert facts["trained_tokens"] == sum(sum(chat.found.trained) for chat in made)


def spoil_mask(rows: Rows) -> Rows:
    return replace(rows, trained=np.zeros_like(rows.trained))


def spoil_end(rows: Rows) -> Rows:
    trained = rows.trained.copy()
    row, place = np.argwhere(trained)[-1]
    trained[row, place] = False
    return replace(rows, trained=trained)


def spoil_padding(rows: Rows) -> Rows:
    trained = rows.trained.copy()
    trained[-1, -1] = True
    return replace(rows, trained=trained)


def spoil_boundary(rows: Rows) -> Rows:
    first, second, *rest = rows.doc_lengths[0]
    return replace(rows, doc_lengths=[[first + 1, second - 1, *rest], *rows.doc_lengths[1:]])


def spoil_sum(rows: Rows) -> Rows:
    return replace(rows, doc_lengths=[[*rows.doc_lengths[0][:-1], rows.doc_lengths[0][-1] - 1], *rows.doc_lengths[1:]])


def spoil_token(rows: Rows) -> Rows:
    tokens = rows.tokens.copy()
    tokens[0, 1] += 1
    return replace(rows, tokens=tokens)


def spoil_id(rows: Rows) -> Rows:
    return replace(rows, doc_ids=[[rows.doc_ids[0][0]] * len(rows.doc_ids[0]), *rows.doc_ids[1:]])


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (spoil_mask, "mask: 3"),
        (spoil_end, "end: 1"),
        (spoil_padding, "mask: 1"),
        (spoil_boundary, "arrived: 1"),
        (spoil_sum, "pieces: 1"),
        (spoil_token, "arrived: 1"),
        (spoil_id, "id: "),
    ],
)
def test_damage_in_the_rows_stops_the_stage(template: ChatTemplate, spoil: object, kind: str) -> None:
    made = chats(template, *CONVERSATIONS)
    with pytest.raises(StageError, match="break the contract") as raised:
        settled(template, made, spoil(packed(template, made)))  # type: ignore[operator]
    assert kind in raised.value.problem and raised.value.where == "chats/set"


def test_damage_in_the_encoding_is_told_apart(template: ChatTemplate) -> None:
    good = template.masked(ASKED)
    first, last = good.trained.index(True), len(good.ids) - 1 - good.trained[::-1].index(True)

    def broken(ids: list[int], trained: list[bool], messages: list[Message] = ASKED, kind: str = "conversation") -> set[str]:
        return set(examine("c", kind, messages, Masked(ids, trained), template).violations)

    def flipped(*places: int) -> list[bool]:
        return [flag != (place in places) for place, flag in enumerate(good.trained)]

    assert broken(good.ids, good.trained) == set()
    assert broken(good.ids, [False] * len(good.ids)) >= {"mask"}
    assert broken(good.ids, flipped(last)) >= {"end"}
    assert broken(good.ids, flipped(first)) == {"round_trip", "prompt"}  # a mask that is shifted by one
    assert broken(good.ids, flipped(first - 1)) >= {"prompt"}
    control = [good.ids[0], *good.ids[1:first], good.ids[0], *good.ids[first:]]
    assert "control" in broken(control, [False, *good.trained])
    assert broken(good.ids, good.trained, [ASKED[0], Message("assistant", "other")]) == {"round_trip"}
    given_away = [
        Message("user", QUESTION + "###Answer: OPTION B IS CORRECT."),
        Message("assistant", "###Answer: OPTION B IS CORRECT."),
    ]
    found = template.masked(given_away)
    assert (
        broken(found.ids, found.trained, given_away, "exam") == {"leak"} and broken(found.ids, found.trained, given_away) == set()
    )


def test_letters_and_quotes_are_counted(template: ChatTemplate) -> None:
    made = [
        examine(f"c{number}", "exam", messages, template.masked(messages), template)
        for number, letter in enumerate("BBBAC")
        for messages in [
            [Message("user", QUESTION), Message("assistant", f"###Rationale: a\n###Answer: OPTION {letter} IS CORRECT.")]
        ]
    ]
    said = [Message("user", "Read: the dose was five mg daily. What?"), Message("assistant", "the dose was five mg daily")]
    found = merged([*made, examine("q", "conversation", said, template.masked(said), template)])
    assert found.letters == {"3A": 1, "3B": 3, "3C": 1} and found.quoted == 1
    shares = letter_shares(found.letters)["3"]
    statistic = sum((count - 5 / 3) ** 2 / (5 / 3) for count in (1, 3, 1))
    assert shares["counts"] == [1, 3, 1]
    assert shares["chi_square"] == pytest.approx(statistic) and shares["p_value"] == pytest.approx(chi2.sf(statistic, 2))


FINDINGS = st.builds(
    Findings,
    conversations=st.integers(0, 9),
    letters=st.dictionaries(st.sampled_from(["3A", "4B"]), st.integers(1, 5)),
    violations=st.dictionaries(
        st.sampled_from(["mask", "end"]), st.lists(st.text("ab", max_size=2), max_size=5).map(sorted).map(tuple)
    ),
    counts=st.dictionaries(st.sampled_from(["mask", "end"]), st.integers(1, 5)),
    content=st.integers(0, 2**64 - 1),
)


@given(FINDINGS, FINDINGS, FINDINGS)
def test_parts_may_be_counted_anywhere(one: Findings, two: Findings, three: Findings) -> None:
    assert one.merge(two) == two.merge(one) and one.merge(two).merge(three) == one.merge(two.merge(three))
    assert findings_from(findings_json(one)) == one


# ---- one conversation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "document", "step"),
    [
        (ASKED, "doc:1", "heldout"),
        ([Message("user", "a"), Message("assistant", " \n")], "", "no_answer"),
        ([Message("user", "a")], "", "no_answer"),
        ([Message("user", "a " * 60), Message("assistant", "b")], "", "too_long"),
    ],
)
def test_what_is_dropped_has_a_reason(template: ChatTemplate, messages: list[Message], document: str, step: str) -> None:
    found = chat_of(row(messages, document=document), template, Chats(row_tokens=ROW_TOKENS), {"doc:1"})
    assert (
        isinstance(found, Dropped)
        and (found.id, found.source, found.step, found.uri) == ("c1", "set", step, "raw/f")
        and found.reason
    )


def test_truncation_keeps_the_last_answer_and_says_what_went(template: ChatTemplate) -> None:
    spec = Chats(row_tokens=ROW_TOKENS, too_long="truncate")
    long = [*ASKED, Message("user", "Say.\n\n" + "rd " * 90), Message("assistant", "b.")]
    found = chat_of(row(long), template, spec, ())
    assert isinstance(found, Chat) and found.cut and found.turns_cut == 2 and found.chars_cut > 0
    assert len(found.found.ids) <= ROW_TOKENS and not found.findings.counts
    text = template.decode(found.found.ids)
    assert "Say." in text and text.count("b.") == 1 and "rd rd" in text and "rd a." not in text
    endless = [Message("user", "a"), Message("assistant", "rd " * 90)]
    dropped = chat_of(row(endless), template, spec, ())
    assert isinstance(dropped, Dropped) and dropped.step == "too_long"


def test_an_artifact_without_rows_is_no_violation() -> None:
    empty = rows_table(pack_whole([], [], 8, 0, np.dtype(np.uint16)), np.dtype(np.uint16))
    assert isinstance(empty, pa.Table) and examine_rows(empty, 0)[0] == Findings()


def test_the_papers_template_goes_through_the_contract(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, None, "</s>")
    paper = ChatTemplate(tmp_path, "pmc_llama")
    asked = [Message("user", QUESTION), Message("assistant", "###Answer: OPTION B IS CORRECT.")]
    assert not examine("c", "exam", asked, paper.masked(asked), paper).counts

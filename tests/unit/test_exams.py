"""Exams: every line read becomes an item or a reason, samples nest, and no question hides in a text. All questions are invented."""

import json
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.errors import InputError
from medschool.exams.formats import EXAM_FORMATS
from medschool.exams.layout import user_text
from medschool.exams.overlap import ExamIndex
from medschool.exams.select import select
from medschool.rows import Dropped, ExamItem

RECORD = {
    "question": "Which vitamin do carrots hold?",
    "answer_a": "Vitamin A",
    "answer_b": "Vitamin B",
    "answer_c": "Vitamin C",
    "answer_d": "Vitamin D",
    "correct_answer": "B",
    "topic": "clinical knowledge",
}


def line(**changes: object) -> str:
    return json.dumps({key: value for key, value in {**RECORD, **changes}.items() if value is not ...})


def read(data: str | bytes) -> list[ExamItem | Dropped]:
    return list(EXAM_FORMATS["mmlu"](data.encode() if isinstance(data, str) else data, "raw/e.jsonl", "clinical"))


def item(number: int, question: str = "", options: tuple[str, ...] = ("w", "x", "y", "z"), **changes: Any) -> ExamItem:
    return replace(ExamItem(f"s:{number}", "e", "s", question or f"Question {number}?", options, 1, "", "e.jsonl"), **changes)


# ---- reading ------------------------------------------------------------------------------------------------------------------


def test_a_line_becomes_an_item_with_one_line_options() -> None:
    (found,) = map(
        alone, read(line(question=" Read this.\r\n\n Which\u00a0one? ", answer_c="Vitamin\n C ", correct_answer=" C "))
    )
    options = ("Vitamin A", "Vitamin B", "Vitamin C", "Vitamin D")
    question = "Read this.\nWhich one?"
    assert found == ExamItem(
        "clinical_knowledge:1", "clinical", "clinical knowledge", question, options, 2, "", "raw/e.jsonl"
    )  # fmt: skip


def test_ids_count_the_lines_of_the_file_and_only_line_feeds_end_a_line() -> None:
    text = json.dumps({**RECORD, "question": "A line\u2028separator?"}, ensure_ascii=False)
    rows = read(f"\ufeff{line()}\r\n\n{text}\n\n")
    assert [row.id for row in rows] == ["clinical_knowledge:1", "clinical_knowledge:3"]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not a JSON object"),
        (line(answer_c=...), "answer_c is missing"),
        (line(question=" \n"), "question is empty"),
        (line(answer_d=""), "answer_d is empty"),
        (line(answer_a=5), "answer_a is 5, not text"),
        (line(topic=None), "topic is None, not text"),
        (line(answer_b="\ud83d"), "answer_b holds half a character"),
        (line(correct_answer="E"), "correct_answer is 'E', not one of A, B, C, D"),
        (line(correct_answer="AB"), "correct_answer is 'AB', not one of A, B, C, D"),
        (line(answer_d=" Vitamin  B"), "answer_b and answer_d are both 'Vitamin B'"),
    ],
)
def test_a_malformed_line_is_dropped_with_its_place_and_its_neighbours_are_not(broken: str, reason: str) -> None:
    before, row, after = read("\n".join([line(), broken, line()]))
    assert isinstance(before, ExamItem) and isinstance(after, ExamItem) and isinstance(row, Dropped)
    assert (row.id, row.step, row.source, row.uri) == ("raw/e.jsonl:2", "malformed", "clinical", "raw/e.jsonl")
    assert row.reason.startswith(f"line 2: {reason}") and len(row.sample) <= 200


def test_options_that_differ_in_case_are_two_options() -> None:
    assert isinstance(read(line(answer_a="AA", answer_b="Aa", answer_c="aa"))[0], ExamItem)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b'{"a": 1}\n\xff\xfe', r"^raw/e\.jsonl:2: not UTF-8"), (b"", "the file is empty"), (b" \n\n", "the file is empty")],
)
def test_a_file_that_is_no_text_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(data)


VALUES = st.one_of(st.text(max_size=8), st.sampled_from(["A", "B", "", " ", "x"]), st.integers(), st.none())


@given(st.lists(st.fixed_dictionaries({}, optional={key: VALUES for key in RECORD}), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_every_line_becomes_exactly_one_row(records: list[dict[str, Any]]) -> None:
    rows = read("\n".join(json.dumps(record) for record in records))
    assert len(rows) == len(records)
    for record, row in zip(records, rows, strict=True):
        options = [" ".join(str(record.get(key, "")).split()) for key in ("answer_a", "answer_b", "answer_c", "answer_d")]
        texts = all(isinstance(record.get(key), str) and record[key].strip() for key in RECORD)
        good = texts and len(set(options)) == 4 and record["correct_answer"].strip() in ("A", "B", "C", "D")
        assert isinstance(row, ExamItem) == good
        if isinstance(row, ExamItem):
            assert row.options[row.answer] == options["ABCD".index(record["correct_answer"].strip())]


# ---- the three exams of the paper ---------------------------------------------------------------------------------------------

USMLE = {
    "question": "What is red?",
    "answer": "Rust",
    "options": {"A": "Iron", "B": "Rust"},
    "meta_info": "step1",
    "answer_idx": "B",
}
HARNESS = {
    "id": "x",
    "sent1": "What is red?",
    "sent2": "",
    "ending0": "Iron",
    "ending1": "Rust",
    "ending2": "Clay",
    "ending3": "Salt",
    "label": 1,
}
MCQ = {
    "id": "u-1",
    "question": "What is red?",
    "opa": "Iron",
    "opb": "Rust",
    "opc": "Clay",
    "opd": "Salt",
    "cop": 2,
    "exp": "It\nis.",
    "subject_name": "Anatomy",
}
ABSTRACT = {
    "QUESTION": "Is it red?",
    "CONTEXTS": ["It was wet.", " It\nrusted. "],
    "final_decision": "no",
    "LONG_ANSWER": "It is not.",
}


def alone(row: ExamItem | Dropped) -> ExamItem | Dropped:
    """The row without the layout of lm-evaluation-harness, which test_harness.py looks at."""
    return replace(row, task="", asked="") if isinstance(row, ExamItem) else row


def rows_of(name: str, *records: object) -> list[ExamItem | Dropped]:
    data = json.dumps(records[0]) if name == "pubmedqa" else "\n".join(map(json.dumps, records))
    return list(EXAM_FORMATS[name](data.encode(), "raw/e", "exam"))


def without(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**record, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("record", "subject", "options"),
    [
        (USMLE, "step1", ("Iron", "Rust")),
        (without(USMLE, options=[{"key": "B", "value": "Rust"}, {"key": "A", "value": "Iron"}]), "step1", ("Iron", "Rust")),
        (without(USMLE, answer=..., meta_info=...), "usmle", ("Iron", "Rust")),
        (without(USMLE, options={**dict(zip("ACDE", ("Iron", "Clay", "Salt", "Tin"), strict=True)), "B": "Rust"}), "step1",
         ("Iron", "Rust", "Clay", "Salt", "Tin")),
        (HARNESS, "usmle", ("Iron", "Rust", "Clay", "Salt")),
    ],
)  # fmt: skip
def test_medqa_is_read_in_each_of_its_forms(record: dict[str, Any], subject: str, options: tuple[str, ...]) -> None:
    assert [alone(row) for row in rows_of("medqa", record)] == [
        ExamItem(f"{subject}:1", "exam", subject, "What is red?", options, 1, "", "raw/e")
    ]


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("medqa", without(USMLE, answer="Iron"), "answer is 'Iron', but option B is 'Rust'"),
        ("medqa", without(USMLE, answer_idx="C"), "answer_idx is 'C', not one of A, B"),
        ("medqa", without(USMLE, options={"A": "Iron", "C": "Rust"}), "options have the letters A, C, not A, B"),
        ("medqa", without(USMLE, options={"A": "Iron"}), "options is neither"),
        ("medqa", without(USMLE, options=[["A", "Iron"]]), "options is neither"),
        ("medqa", without(USMLE, options={"A": "Rust ", "B": "Rust"}), "options: A and B are both"),
        ("medqa", without(USMLE, options={"A": None, "B": "Rust"}), "options: A is None, not text"),
        ("medqa", without(HARNESS, label=4), "label is 4, not a number from 0 to 3"),
        ("medqa", without(HARNESS, label=True), "label is True"),
        ("medqa", without(HARNESS, ending3=...), "ending3 is missing"),
        ("medmcqa_from_1", without(MCQ, cop=0), "cop is 0, not a number from 1 to 4"),
        ("medmcqa_from_0", without(MCQ, cop=4), "cop is 4, not a number from 0 to 3"),
        ("medmcqa_from_0", without(MCQ, cop="2"), "cop is '2'"),
        ("medmcqa_from_0", without(MCQ, opc="Iron"), "opa and opc are both 'Iron'"),
        ("medmcqa_from_0", without(MCQ, id=5), "id is 5, not text"),
    ],
)
def test_a_question_that_is_not_what_its_format_says_is_dropped(name: str, record: dict[str, Any], reason: str) -> None:
    (row,) = rows_of(name, record)
    assert isinstance(row, Dropped) and row.step == "malformed" and row.reason.startswith(f"line 1: {reason}"), row


def test_medmcqa_is_read_by_the_way_of_counting_that_its_values_show() -> None:
    def answers(*cops: int) -> list[int]:
        rows = rows_of("medmcqa", *(without(MCQ, cop=cop, id=f"u-{place}") for place, cop in enumerate(cops)))
        return [row.answer for row in rows if isinstance(row, ExamItem)]

    assert answers(1, 4, 2) == [0, 3, 1] and answers(1, 0, 2) == [1, 0, 2]
    for cops, says in (((0, 4), "some count from 0 and some from 1"), ((1, 2), "cannot be told")):
        with pytest.raises(InputError, match=says):
            answers(*cops)
    (item,) = rows_of("medmcqa_from_1", MCQ)
    assert isinstance(item, ExamItem) and (item.id, item.subject, item.rationale) == ("Anatomy:u-1", "Anatomy", "It is.")


def test_what_is_not_labelled_is_dropped_as_such() -> None:
    rows = rows_of("medmcqa", without(MCQ, cop=-1), without(MCQ, cop=None), without(MCQ, cop=4, exp=None, subject_name=None))
    assert [row.step for row in rows[:2] if isinstance(row, Dropped)] == ["unlabelled", "unlabelled"]
    assert isinstance(rows[2], ExamItem) and (rows[2].subject, rows[2].rationale) == ("unknown", "")
    (row,) = rows_of("pubmedqa", {"5": without(ABSTRACT, final_decision=...)})
    assert isinstance(row, Dropped) and (row.id, row.step) == ("pubmed:5", "unlabelled")


def test_pubmedqa_asks_about_its_context() -> None:
    (row,) = rows_of("pubmedqa", {"5": ABSTRACT})
    context = "It was wet.\nIt\nrusted."
    assert alone(row) == ExamItem(
        "pubmed:5", "exam", "pubmed", "Is it red?", ("yes", "no", "maybe"), 1, "It is not.", "raw/e", context
    )
    assert isinstance(row, ExamItem) and user_text(row, "Say.").startswith(
        f"Say.\n\n###Context: {context}\n###Question: Is it red?"
    )
    broken = {
        "1": 5,
        "2": without(ABSTRACT, CONTEXTS="x"),
        "3": without(ABSTRACT, final_decision="perhaps"),
        "4": without(ABSTRACT, QUESTION=""),
    }
    assert [row.step for row in rows_of("pubmedqa", broken) if isinstance(row, Dropped)] == ["malformed"] * 4
    for data in (b"[1]", b"{"):
        with pytest.raises(InputError):
            list(EXAM_FORMATS["pubmedqa"](data, "raw/e", "exam"))


# ---- selecting ----------------------------------------------------------------------------------------------------------------


def test_a_larger_sample_begins_with_the_smaller_one_whatever_the_order_of_the_files() -> None:
    items = [item(number) for number in range(40)]
    whole, dropped = select(items, None, seed=3)
    assert dropped == [] and sorted(whole, key=lambda one: one.id) == sorted(items, key=lambda one: one.id)
    for count in (1, 7, 40, 99):
        assert select(items[::-1], None, seed=3)[0][:count] == whole[:count]
    assert [one.id for one in select(items, None, seed=4)[0]] != [one.id for one in whole]


def test_an_item_taken_away_changes_no_other_rank() -> None:
    items = [item(number) for number in range(20)]
    whole = select(items, None, seed=0)[0]
    assert select(items[1:], None, seed=0)[0] == [one for one in whole if one.id != "s:0"]


def test_subjects_are_kept_and_an_unknown_one_is_named_with_those_there_are() -> None:
    items = [item(1, subject="anatomy"), item(2, subject="virology"), item(3, subject="anatomy")]
    kept, dropped = select(items, ("anatomy",), seed=0)
    assert {one.id for one in kept} == {"s:1", "s:3"} and dropped == []
    with pytest.raises(InputError, match="'anatmy'") as error:
        select(items, ("virology", "anatmy"), seed=0)
    assert "anatomy, virology" in error.value.remedy


def test_repeats_are_dropped_with_the_id_of_the_first_before_the_sample_is_drawn() -> None:
    items = [
        item(1, "What  is it?"),
        item(2, "what is IT", options=("z", "Y.", "x", "w")),
        item(3, "What is it?", options=("w", "x", "y", "other")),
        item(4, "What is it?", answer=2),
        item(5, "Is it > 5?", options=("> 5", "< 5", "5", "6")),
        item(6, "Is it < 5?", options=("> 5", "< 5", "5", "6")),
    ]
    kept, dropped = select(items, None, seed=0)
    assert {one.id for one in kept} == {"s:1", "s:3", "s:5", "s:6"}
    assert [(row.id, row.step, row.reason) for row in dropped] == [
        ("s:2", "duplicate", "repeats s:1, where another answer is right"),
        ("s:4", "duplicate", "repeats s:1, where another answer is right"),
    ]
    same = select([item(1), item(2, "Question 1?")], None, seed=0)
    assert [one.id for one in same[0]] == ["s:1"] and same[1][0].reason == "repeats s:1"


def test_two_questions_of_one_id_are_an_error() -> None:
    with pytest.raises(InputError, match="two questions have the id 's:1'"):
        select([item(1), item(1, "Another one?", uri="f.jsonl")], None, seed=0)


# ---- overlap ------------------------------------------------------------------------------------------------------------------

CARROT = item(1, "Which vitamin do carrots hold?", ("Vitamin A", "Vitamin B", "Vitamin C", "Vitamin D"))
LONG = item(
    2,
    "A gardener of fifty years comes with yellow palms after months of eating carrots every single day. "
    "Which of the following is the most likely diagnosis?",
    ("Carotenaemia of the skin", "Jaundice", "A dye on both hands", "None of these"),
)
PAIR = ExamIndex([CARROT, LONG])


def found(text: str, index: ExamIndex = PAIR) -> str | None:
    hit = index.find(text)
    return hit.item if hit else None


def test_a_question_is_found_in_every_layout_and_order_of_options() -> None:
    for one in (CARROT, LONG):
        shuffled = replace(one, options=one.options[::-1])
        for text in (user_text(one, "Answer."), user_text(shuffled, "Answer.")):
            assert found(text) == one.id
            assert found(f"{'Other words. ' * 500}{text.upper()}{' And so on.' * 500}") == one.id
    assert found("which vitamin do carrots hold? (A) Vitamin A (B) Vitamin B (C) Vitamin C (D) Vitamin D") == CARROT.id


def test_a_common_phrase_or_a_question_without_its_options_is_not_enough() -> None:
    assert found("Which of the following is the most likely diagnosis?") is None
    assert found("Which vitamin do carrots hold? Nobody knows.") is None
    assert found("Which vitamin do carrots hold? They hold vitamin A, vitamin B, vitamin C, vitamin D.") == CARROT.id
    assert found("Which vitamin do carrots hold? They hold vitamin A, vitamin B and vitamin D.") is None
    assert found("") is None and found("carrots") is None


def test_the_share_counts_blocks_of_five_words_and_more() -> None:
    first = LONG.question.partition(".")[0]  # 17 of 39 words: 10 grams of eight
    hit = PAIR.find(f"{first}, and we ask which of the following is odd.")  # a block of five more
    assert hit is not None and (hit.item, hit.share, hit.hits) == (LONG.id, 22 / 39, 10)
    assert found(f"{first}, and we ask which of the following was odd.") is None  # four more would do, but do not count
    both = PAIR.find(f"{first}, and we ask which of the following is odd. {user_text(CARROT, '')}")
    assert both is not None and (both.item, both.share) == (CARROT.id, 1.0)


def test_blocks_before_the_first_gram_count_and_letters_of_options_do_not_part_words() -> None:
    end = "Which of the following is the most likely diagnosis? (A) Carotenaemia of the skin (B) Jaundice"
    hit = PAIR.find(f"With yellow palms after months of eating, {end}")
    assert hit is not None and hit.share == 21 / 39
    assert found(end) is None
    options = ("salt in warm water", "sand in cold milk", "clay in old wine", "iron in new oil")
    index = ExamIndex([item(1, "Which mix?", options)])
    listed = "(A) salt in warm water (B) sand in cold milk (C) clay in old wine"
    assert found(listed, index) == found(listed.replace(" (", "\n").replace(")", "."), index) == "s:1"


def test_an_item_of_few_words_is_found_by_its_question() -> None:
    index = ExamIndex([item(1, "Is rust iron?", ("Yes", "No")), item(2, "???", ("+", "-"))])
    assert found("Tell me: is rust, iron?", index) == "s:1"
    assert found("Rust is iron?", index) is None and found("Is it rust or iron?", index) is None


def test_every_item_of_a_text_is_found_with_its_exam_and_find_gives_the_fullest() -> None:
    other = replace(LONG, exam="second")
    index = ExamIndex([CARROT, LONG, other])
    half = LONG.question.partition(".")[0] + ", and we ask which of the following is odd."
    text = f"{'Other words. ' * 300}{half}{' And so on.' * 300} {user_text(CARROT, 'Answer.')}"
    assert [(hit.exam, hit.item) for hit in index.find_all(text)] == [("e", "s:2"), ("second", "s:2"), ("e", "s:1")]
    assert index.find(text) == index.find_all(text)[2]
    assert index.find_all("Nothing to see.") == []


def test_a_phrase_of_every_chapter_adds_up_to_no_item_and_does_not_hide_one() -> None:
    pieces = [" ".join(LONG.question.replace(".", "").split()[at : at + 8]) for at in range(0, 24, 8)]
    filler = " ".join(f"word{number}" for number in range(200))
    chapters = f" {filler} ".join(pieces * 20)
    assert found(chapters) is None  # each part of the question, far apart, is not the question
    assert found(f"{chapters} {filler} {user_text(LONG, '')} {filler} {chapters}") == LONG.id
    assert found(" ".join([user_text(LONG, "")] * 20)) == LONG.id


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(0, 60), st.lists(st.integers(0, 3), max_size=30))
def test_a_copy_is_found_whole_wherever_it_stands_among_signs_of_it(before: int, behind: int, signs: list[int]) -> None:
    parts = LONG.question.replace(".", "").split()
    noise = [" ".join(parts[8 * sign : 8 * sign + 9]) for sign in signs]
    text = f"{' '.join(noise[:before])} filler words {user_text(LONG, '')} more filler {' '.join(noise[behind:])}"
    (hit,) = PAIR.find_all(text)
    assert (hit.item, hit.share) == (LONG.id, 1.0)


def test_common_words_count_in_a_long_item() -> None:
    words = [f"w{number % 7}" for number in range(300)]
    index = ExamIndex([item(1, " ".join(words))])
    assert found(f"Well, {' '.join(words[:280])}", index) == "s:1"


WORDS = st.lists(st.sampled_from(["a1", "b2", "c3"]), min_size=1, max_size=5)


def holds(part: list[str], words: list[str]) -> bool:
    return any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1))


def oracle(question: list[str], options: list[list[str]], words: list[str]) -> bool:
    """The rule as it is written down, without an index and over the whole text."""
    whole = question + [word for option in options for word in option]
    if len(whole) < 8:
        return holds(question, words)
    if holds(question, words) and all(holds(option, words) for option in options):
        return True
    candidate = any(holds(whole[at : at + 8], words) for at in range(len(whole) - 7))
    candidate = candidate or (len(question) < 8 and holds(question, words))
    blocks = SequenceMatcher(None, words, whole, autojunk=False).get_matching_blocks()
    return candidate and sum(block.size for block in blocks if block.size >= 5) >= len(whole) / 2


@given(st.lists(WORDS, min_size=1, max_size=3), st.lists(WORDS, min_size=2, max_size=4), st.data())
@settings(max_examples=400, deadline=None)
def test_find_agrees_with_the_rule_word_by_word(parts: list[list[str]], options: list[list[str]], data: st.DataObject) -> None:
    question = [word for part in parts for word in part]
    whole = question + [word for option in options for word in option]
    pieces = st.one_of(
        WORDS, st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole))).map(lambda ends: whole[slice(*ends)])
    )
    words = [word for piece in data.draw(st.lists(pieces, max_size=5)) for word in piece][: len(whole)]
    index = ExamIndex([item(1, " ".join(question), tuple(" ".join(option) for option in options))])
    assert (found(" ".join(words), index) == "s:1") == oracle(question, options, words)

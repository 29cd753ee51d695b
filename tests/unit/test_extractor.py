"""What an answer says: as the original evaluation script reads it, and what that script leaves out is counted."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.exams.layout import DECISIONS, answer_text, parse_answer, read_answer


def original(text: str) -> str | None:
    """The rule of chaoyi-wu/PMC-LLaMA, SFT/eval/eval_medqa.py, in other words: the second word of the first match, if any."""
    found = re.compile("(?i)OPTION [ABCD] IS CORRECT").findall(text)
    return found[0].split()[1].upper() if found else None


def generated(draw: random.Random) -> str:
    """A text of pieces that make an answer, or nearly make one."""
    pieces = [
        "###Answer: ", "OPTION", "option", "Option", " ", "  ", "\n", "A", "B", "c", "D", "E", "K", "\u212a", "IS", "is", "\u0131s", "i\u017f", "CORRECT", "correct",
        ".", "###Rationale: ", "OPTION A IS CORRECT", "option d is correct", "OPTION E IS CORRECT", "OPTION B IS INCORRECT", "OPTION C IS CORRECTED",
    ]  # fmt: skip
    return "".join(draw.choice(pieces) + draw.choice(["", " "]) for _ in range(draw.randrange(12)))


def test_a_thousand_generated_answers_are_read_as_by_the_original_and_the_rest_is_counted() -> None:
    draw = random.Random(0)
    texts = [generated(draw) for _ in range(1000)]
    theirs = [original(text) for text in texts]
    ours = [parse_answer(text, 4) for text in texts]
    assert [None if index is None else "ABCD"[index] for index in ours] == theirs
    read = sum(found is not None for found in theirs)
    assert 200 < read < 800 and len(ours) - sum(index is None for index in ours) == read  # it leaves out what we count as unread


@settings(max_examples=400, deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["OPTION ", "oPtIoN ", "A", "d", "E", "\u017f", "\u212a", " IS CORRECT", " i\u017f correct"])).map(
        "".join
    )
)
def test_any_text_is_read_as_by_the_original(text: str) -> None:
    found = parse_answer(text, 4)
    assert (None if found is None else "ABCD"[found]) == original(text)


@pytest.mark.parametrize("options", range(2, 27))
def test_as_many_letters_are_read_as_there_are_options(options: int) -> None:
    assert [parse_answer(answer_text(index), options) for index in range(26)] == [*range(options), *[None] * (26 - options)]
    assert parse_answer(f"{answer_text(options % 26)} {answer_text(0)}", options) == 0  # what is no option is no answer


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("yes", "yes"), ("No.", "no"), (" Maybe, as", "maybe"), ("Answer: no", "no"), ("###Answer: yes", "yes"), ("The answer is maybe", "maybe"),
        ("OPTION B IS CORRECT", "no"), ("yes: OPTION B IS CORRECT", "no"), ("There was no difference", None), ("nothing", None), ("", None),
        ("yesterday", None), ("It may be, no", None),
    ],
)  # fmt: skip
def test_a_decision_is_the_option_named_or_the_word_that_the_text_begins_with(text: str, word: str | None) -> None:
    assert read_answer(text, DECISIONS) == (None if word is None else DECISIONS.index(word))
    assert read_answer(text, ("a", "b", "c")) == parse_answer(text, 3)  # other exams have no words

"""Written answers: how many can be read and how many are right, with intervals worked by hand."""

import math

import pyarrow as pa
import pytest

from medschool.ablate.written import HEADINGS, written_rows, written_scores
from medschool.evaluate.answer import ANSWERS_SCHEMA, parse_rates


def answers(*found: tuple[str, int | None, bool]) -> pa.Table:
    rows = [
        {"exam": exam, "id": f"{exam}:{number}", "text": "", "chosen": chosen, "correct": correct}
        for number, (exam, chosen, correct) in enumerate(found)
    ]
    return pa.Table.from_pylist(rows, ANSWERS_SCHEMA)


def wilson_by_hand(part: int, whole: int, z: float = 1.959964) -> tuple[float, float]:
    """Newcombe 1998, method 3: the two shares that lie z standard errors, of their own, from the one seen."""
    middle = 2 * part + z * z
    half = z * math.sqrt(z * z + 4 * part * (1 - part / whole))
    return (middle - half) / (2 * (whole + z * z)), (middle + half) / (2 * (whole + z * z))


def test_an_answer_that_cannot_be_read_is_no_answer_and_counts_as_wrong() -> None:
    found = written_scores(answers(("e", 1, True), ("e", None, False), ("e", 3, False), ("e", 0, True)), 0.95)
    assert (found["items"], found["correct"], found["unparsed"]) == (4, 2, 1)
    assert (found["parse_rate"]["value"], found["accuracy"]["value"]) == (0.75, 0.5)
    assert found["letters"] == {"A": 1, "B": 1, "D": 1}
    for share, part in ((found["parse_rate"], 3), (found["accuracy"], 2)):
        assert (share["low"], share["high"]) == pytest.approx(wilson_by_hand(part, 4), abs=1e-6)


@pytest.mark.parametrize(("chosen", "parsed", "bound"), [(2, 1.0, 0.9808), (None, 0.0, 0.0192)])
def test_no_answer_or_every_answer_still_has_an_interval(chosen: int | None, parsed: float, bound: float) -> None:
    found = written_scores(answers(*[("e", chosen, False)] * 196), 0.95)["parse_rate"]
    assert found["value"] == parsed and not math.isclose(found["low"], found["high"])
    assert min(found["low"], found["high"], key=lambda end: abs(end - bound)) == pytest.approx(bound, abs=1e-4)


def test_the_table_has_a_line_for_each_trial_and_exam_with_written_answers() -> None:
    some = written_scores(answers(*[("e", 0, True)] * 3, ("e", None, False)), 0.95)
    trials = [{"name": "base", "exams": {"e": {"written": some}, "f": {"written": None}}}, {"name": "tuned", "exams": {}}]
    assert written_rows(trials) == [HEADINGS, ["base", "e", "4", "75.0% [30.1, 95.4]", "A, 3 of 3"]]


def test_the_share_that_can_be_read_is_told_for_each_exam() -> None:
    found = answers(("b", 1, True), ("a", None, False), ("b", None, False), ("a", None, False))
    assert parse_rates(found) == {"a": 0.0, "b": 0.5}
    assert parse_rates(ANSWERS_SCHEMA.empty_table()) == {}

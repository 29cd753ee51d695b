"""The protocol `lm_eval` against what lm-evaluation-harness said of the same invented questions; prompts, cuts, and its hash."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exam_files import ITEMS, SUBJECTS, records, write_formula_model

from medschool.errors import InputError
from medschool.evaluate.exams import score_as_harness
from medschool.evaluate.harness import Encode, asked, encode_pairs, harness_encoder, score_items
from medschool.evaluate.protocol import hashes, sitting
from medschool.exams.formats import EXAM_FORMATS
from medschool.exams.harness import context, endings, shots_of
from medschool.recipe.corpus import Files
from medschool.recipe.evaluation import Exam, Shots
from medschool.rows import ExamItem
from medschool.train.model import load_model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lm_eval_equal.json").read_text(encoding="utf-8"))
FILES = (Files(uri="raw/e", format="mmlu"),)


def read(form: str, worked: bool = False) -> list[ExamItem]:
    rows = records(form, worked)
    lines = json.dumps(dict(enumerate(rows))) if form == "pubmedqa" else "\n".join(map(json.dumps, rows))
    found = list(EXAM_FORMATS["medmcqa_from_0" if form == "medmcqa" else form](lines.encode(), "file", "exam"))
    assert all(isinstance(row, ExamItem) for row in found), found
    return found  # type: ignore[return-value]


Checkpoint = tuple[Any, Encode]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Checkpoint]]:
    made = {}
    for kind in ("bos", "border"):
        write_formula_model(folder := tmp_path_factory.mktemp(kind), kind)
        made[kind] = (load_model(folder, "fp32").eval(), harness_encoder(folder))
    yield made


def of_case(name: str) -> tuple[list[ExamItem], list[ExamItem], int]:
    """Items, worked questions and how many of these, of a case that is called `mmlu_anatomy, 1 worked`."""
    task, count = name.removesuffix(" worked").split(", ")
    form, _, subject = task.partition("_")
    mine = [item for item in read(form) if not subject or item.subject == subject.replace("_", " ")]
    return mine, read(form, worked=True), int(count)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['tokenizer']} {case['name']}")
def test_every_item_scores_as_by_the_harness_itself(case: dict[str, Any], checkpoints: dict[str, Checkpoint]) -> None:
    items, shots, count = of_case(case["name"])
    found = score_items(*checkpoints[case["tokenizer"]], items, shots, count)
    assert len(found) == len(case["items"]) > 0
    for item, mine, his in zip(items, found, case["items"], strict=True):
        assert mine.log_probs == pytest.approx(his["log_probs"], abs=1e-3)
        assert (mine.chosen == item.answer) == bool(his["acc"])
        assert his["acc_norm"] is None or (mine.chosen_norm == item.answer) == bool(his["acc_norm"])


def test_the_golden_cases_are_all_there_and_some_of_them_are_cut(checkpoints: dict[str, Checkpoint]) -> None:
    names = {(case["tokenizer"], case["name"]) for case in GOLDEN["cases"]}
    tasks = ["medqa", "medmcqa", "pubmedqa", *(f"mmlu_{subject}" for subject in SUBJECTS)]
    assert names == {(kind, f"{task}, {count} worked") for kind in ("bos", "border") for task in tasks for count in (0, 1)}
    for kind, checkpoint in checkpoints.items():
        cut = [found.cut_tokens for found in score_items(*checkpoint, read("medqa"))]
        assert len(cut) == ITEMS and min(cut) == 0 < max(cut), (kind, cut)


def test_a_prompt_is_the_file_s_text_untouched_with_the_worked_questions_of_its_subject() -> None:
    first, second = read("mmlu")[:2]
    record, worked = records("mmlu", False)[1], read("mmlu", worked=True)
    own = shots_of(second, worked, 1)
    assert [shot.subject for shot in own] == [second.subject] == ["high school us history"] and first.subject == "anatomy"
    lettered = "".join(f"{name}. {option}\n" for name, option in zip("ABCD", record["choices"], strict=True))
    assert context(second, own) == (
        "The following are multiple choice questions (with answers) about high school us history.\n\n"
        f"{own[0].asked} {'ABCD'[own[0].answer]}\n\n{record['question'].strip()}\n{lettered}Answer:"
    )
    assert "  " in context(second, own) and "  " not in second.question + "".join(second.options)


def test_pubmedqa_chooses_between_words_and_the_others_between_letters() -> None:
    assert endings(read("pubmedqa")[0]) == ("yes", "no", "maybe")
    assert endings(read("medmcqa")[0]) == ("A", "B", "C", "D")


def test_spaces_at_the_end_of_a_context_belong_to_the_ending() -> None:
    def letters(text: str) -> list[int]:
        return [ord(character) for character in text]

    pairs = encode_pairs(letters, "So:  ", [" A", " BB"])
    assert pairs == [(letters("So:"), letters("   A")), (letters("So:"), letters("   BB"))]
    assert encode_pairs(letters, "So:\n", ["A"]) == [(letters("So:"), letters("\nA"))]


def test_a_long_context_is_encoded_once_for_all_its_endings() -> None:
    seen: list[str] = []

    def letters(text: str) -> list[int]:
        seen.append(text)
        return [ord(character) for character in text]

    item, worked = read("medqa")[0], read("medqa", worked=True)[:1]
    made = asked(item, letters, worked, 10**6)
    assert seen.count(context(item, worked)) == 1 and len(seen) == 1 + len(endings(item)) == 5
    assert [len(choice.endings) for choice in made.choices] == [4]


def test_a_context_that_begins_with_the_bos_gets_no_second_one(checkpoints: dict[str, Checkpoint]) -> None:
    encode = checkpoints["bos"][1]
    assert encode("<s>So") == encode("So") and encode("So")[0] == 0 and encode("So").count(0) == 1


def test_items_of_which_nothing_can_be_said_are_named(checkpoints: dict[str, Checkpoint]) -> None:
    model, encode = checkpoints["bos"]
    item = read("medqa")[0]
    with pytest.raises(InputError, match=r"exam usmle:1: .*no layout"):
        score_items(model, encode, [replace(item, asked="")])
    with pytest.raises(InputError, match=r"exam usmle:1: .*apart"):
        score_items(model, lambda text: encode(text.replace(" B", " A")), [item])


def test_the_table_says_what_was_cut_and_under_which_protocol(checkpoints: dict[str, Checkpoint]) -> None:
    items = read("mmlu")
    how = sitting(Exam(files=FILES, protocol="lm_eval", shots=Shots(files=FILES, count=1)), items, read("mmlu", worked=True))
    table = score_as_harness(*checkpoints["bos"], items, how, how.protocol("").hash)
    found = score_items(*checkpoints["bos"], items, read("mmlu", worked=True), 1)
    assert table.column("log_probs").to_pylist() == [list(one.log_probs) for one in found]
    assert (
        table.column("cut_tokens").to_pylist() == [one.cut_tokens for one in found]
        and max(table.column("cut_tokens").to_pylist()) > 0
    )
    assert hashes(table) == {"exam": how.protocol("").hash}
    assert table.column("correct").to_pylist() == [one.chosen == item.answer for one, item in zip(found, items, strict=True)]


# ---- the hash -----------------------------------------------------------------------------------------------------------------


def test_whatever_decides_a_score_changes_the_hash_and_the_place_of_a_file_does_not() -> None:
    items, worked = read("mmlu"), read("mmlu", worked=True)
    letters, harness = Exam(files=FILES), Exam(files=FILES, protocol="lm_eval", shots=Shots(files=FILES, count=1))
    two = harness.model_copy(update={"shots": Shots(files=FILES, count=2)})
    seen = [
        sitting(letters, items, ()).protocol("{{ x }}").hash,
        sitting(letters, items, ()).protocol("{{ y }}").hash,
        sitting(letters, items[1:], ()).protocol("{{ x }}").hash,
        sitting(letters, items[::-1], ()).protocol("{{ x }}").hash,
        sitting(letters, [replace(items[0], answer=(items[0].answer + 1) % 4), *items[1:]], ()).protocol("{{ x }}").hash,
        sitting(letters, items, ()).written("{{ x }}", 16).hash,
        sitting(letters, items, ()).written("{{ x }}", 17).hash,
        sitting(letters.model_copy(update={"generated_items": 2}), items, ()).written("{{ x }}", 16).hash,
        sitting(Exam(files=FILES, protocol="lm_eval"), items, ()).protocol("").hash,
        sitting(harness, items, worked).protocol("").hash,
        sitting(harness, items, worked[1:]).protocol("").hash,
        sitting(two, items, worked).protocol("").hash,
    ]
    assert len(set(seen)) == len(seen)
    moved = [replace(item, uri="elsewhere", exam="other") for item in items]
    assert sitting(letters, moved, ()).protocol("{{ x }}").hash == seen[0]
    assert sitting(harness, items, worked).protocol("{{ any }}").hash == seen[9]  # no chat template is used


def test_the_hash_follows_the_prompt_that_the_code_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    from medschool.exams import harness

    how = sitting(Exam(files=FILES, protocol="lm_eval"), read("mmlu"), ())
    before = how.protocol("").hash
    monkeypatch.setattr(harness, "BETWEEN", "\n")
    assert how.protocol("").hash != before

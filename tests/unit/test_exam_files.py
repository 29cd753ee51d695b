"""Whole exams from files: every form, the size that was published, ids, worked questions, and one's own. All invented."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import RECIPE

from medschool import storage
from medschool.errors import InputError
from medschool.exams import published as sizes
from medschool.exams.calibration import PMC_LLAMA, table_rows
from medschool.exams.formats import EXAM_FORMATS
from medschool.exams.make import DROPPED, ITEMS, SHOTS, items_of, make_exam
from medschool.exams.published import GENERAL, MEDICAL_6, MEDICAL_9, PUBLISHED, Published
from medschool.recipe import Recipe, load
from medschool.rows import Dropped, ExamItem

HUB = {"question": " Which  organ?", "choices": ["Kidney ", "Heart", "Liver", "Skin"], "answer": 2, "subject": "medical_genetics"}
OWN = {"id": "w-1", "question": "Which drug?", "options": ["Aspirin", "Heparin", "Insulin"], "answer": "b", "context": "A ward."}


def rows(name: str, data: str, uri: str = "raw/anatomy_test.csv") -> list[ExamItem | Dropped]:
    return list(EXAM_FORMATS[name](data.encode(), uri, "exam"))


def written(*lines: list[str]) -> str:
    sink = io.StringIO()
    csv.writer(sink).writerows(lines)
    return sink.getvalue()


# ---- forms of MMLU ------------------------------------------------------------------------------------------------------------


def test_mmlu_is_the_same_question_in_each_of_its_forms() -> None:
    options = dict(zip(("answer_a", "answer_b", "answer_c", "answer_d"), HUB["choices"], strict=True))
    plain = {"question": HUB["question"], **options, "correct_answer": "C", "topic": "medical genetics"}
    as_csv = written([HUB["question"], *HUB["choices"], "C"])
    found = [
        *rows("mmlu", json.dumps(plain)),
        *rows("mmlu", json.dumps(HUB)),
        *rows("mmlu_csv", as_csv, "raw/medical_genetics_test.csv"),
    ]
    ids = {(row.id, row.subject, row.answer, row.options, row.asked) for row in found if isinstance(row, ExamItem)}  # type: ignore[union-attr]
    assert len(found) == 3 and ids == {
        ("medical_genetics:1", "medical genetics", 2, ("Kidney", "Heart", "Liver", "Skin"),
         "Which  organ?\nA. Kidney \nB. Heart\nC. Liver\nD. Skin\nAnswer:")
    }  # fmt: skip


def test_a_question_of_several_lines_stays_one_record_of_a_csv_file() -> None:
    found = rows(
        "mmlu_csv", written(["One\ntwo, three?", "a", "b", "c", "d", "D"], ["Four?", "a", "b", "c"], ["Five?", *"abcd", "E"])
    )
    assert [row.id if isinstance(row, ExamItem) else row.reason for row in found] == [
        "anatomy:1", "line 2: 4 columns, not 6", "line 3: correct_answer is 'E', not one of A, B, C, D",
    ]  # fmt: skip
    for uri, data in (("raw/anatomy.csv", "a"), ("raw/anatomy_test.csv", 'x,"y')):
        with pytest.raises(InputError, match=r"subject|CSV"):
            rows("mmlu_csv", data, uri)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"choices": ["a", "b", "c"]}, "choices is"),
        ({"choices": ["a", "b", "c", 4]}, "answer_d is 4, not text"),
        ({"answer": 4}, "answer is 4, not a number from 0 to 3"),
        ({"answer": True}, "answer is True"),
        ({"answer": "C"}, "answer is 'C'"),
        ({"subject": None}, "topic is None"),
    ],
)
def test_a_malformed_record_with_choices_says_what_is_wrong(change: dict[str, Any], reason: str) -> None:
    (row,) = rows("mmlu", json.dumps(HUB | change))
    assert isinstance(row, Dropped) and row.step == "malformed" and reason in row.reason, row


# ---- an exam of one's own -----------------------------------------------------------------------------------------------------


def test_an_own_exam_is_read_with_its_context_before_the_question() -> None:
    first, second = rows(
        "plain", json.dumps(OWN) + "\n" + json.dumps(OWN | {"id": "w-2", "context": None, "subject": "night_shift"})
    )
    assert isinstance(first, ExamItem) and isinstance(second, ExamItem)
    assert (first.id, first.subject, first.answer, first.context) == ("w-1", "own", 1, "A ward.")
    assert first.asked == "A ward.\n\nQuestion: Which drug?\nA. Aspirin\nB. Heparin\nC. Insulin\nAnswer:"
    assert (second.subject, second.context, second.asked[:9]) == ("night shift", "", "Question:")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answr": "B"}, "answr is no key of this format"),
        ({"answer": 1}, "answer is 1, not text"),
        ({"answer": "D"}, "answer is 'D', not one of A, B, C"),
        ({"options": ["one"]}, "options is ['one'], not a list of 2 to 26 texts"),
        ({"options": ["x", " x"], "answer": "A"}, "options: A and B are both"),
        ({"options": ["x", ""], "answer": "A"}, "options: B is empty"),
        ({"id": ""}, "id is empty"),
        ({"rationale": 5}, "rationale is 5, not text"),
    ],
)
def test_a_malformed_question_of_an_own_exam_says_what_is_wrong(change: dict[str, Any], reason: str) -> None:
    (row,) = rows("plain", json.dumps(OWN | change))
    assert isinstance(row, Dropped) and row.reason.startswith(f"line 1: {reason}"), row


# ---- whole exams --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return load(path)


def made(
    recipe: Recipe, store: Path, stored: dict[str, bytes], **spec: Any
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Facts and tables of the exam `e` that `spec` says, with the `stored` files."""
    for name, data in stored.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(data)
    whole = recipe.model_dump() | {
        "exams": {"e": spec},
        "instructions": {},
        "gate": None,
        "probes": None,
        "serve": None,
        "search": None,
    }
    whole |= {
        "variants": {"base": {}, "control": {"weights": {"general": 20}}},
        "retention": None,
        "chats": None,
        "instruct": None,
    }
    out = make_exam(Recipe.model_validate(whole), "e", str(store), storage.join(str(store), "out"))
    tables = {name: storage.read_parquet(storage.join(str(store), "out", name)).to_pylist() for name in (ITEMS, DROPPED, SHOTS)}
    return out.facts, tables


def abstracts(count: int) -> dict[str, dict[str, Any]]:
    return {
        str(pmid): {"QUESTION": f"Does {pmid} help?", "CONTEXTS": ["It was given."], "final_decision": "no"}
        for pmid in range(count)
    }


def files_of(format_: str, *uris: str) -> list[dict[str, str]]:
    return [{"uri": uri, "format": format_} for uri in uris]


def test_tables_of_datasets_are_read_as_their_rows(recipe: Recipe, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([HUB, HUB | {"question": "Another?"}])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table.slice(0, 1), parquet := io.BytesIO())
    files = {"a.parquet": parquet.getvalue(), "b.arrow": sink.getvalue().to_pybytes()}
    facts, tables = made(recipe, tmp_path, files, files=files_of("mmlu", "a.parquet"))
    assert facts["items"] == 1 and items_of(tables[ITEMS])[0].options == ("Kidney", "Heart", "Liver", "Skin")
    assert facts["files"] == {"a.parquet": hashlib.sha256(files["a.parquet"]).hexdigest()}
    assert made(recipe, tmp_path, {}, files=files_of("mmlu", "b.arrow"))[0]["items"] == 2
    with pytest.raises(InputError, match=r"cut\.parquet: not a readable parquet file"):
        made(recipe, tmp_path, {"cut.parquet": files["a.parquet"][:-9]}, files=files_of("mmlu", "cut.parquet"))


@pytest.mark.parametrize("ids", [b'{"3": "no", "1": "no"}', b'["1", "3"]', b"1\n3\n"], ids=["object", "list", "lines"])
def test_ids_keep_what_they_name(recipe: Recipe, tmp_path: Path, ids: bytes) -> None:
    files = {"p.json": json.dumps(abstracts(5)).encode(), "ids": ids}
    facts, tables = made(recipe, tmp_path, files, files=files_of("pubmedqa", "p.json"), ids="ids")
    assert sorted(item.id for item in items_of(tables[ITEMS])) == ["pubmed:1", "pubmed:3"] and facts["items"] == 2


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (b'["1", "9", "8"]', r"ids: 2 of 3 ids have no question, 9, 8"),
        (b'{"1": "yes"}', "answered 'yes' here and 'no' in p.json"),
    ],
)
def test_ids_that_do_not_fit_their_exam_are_refused(recipe: Recipe, tmp_path: Path, ids: bytes, message: str) -> None:
    files = {"p.json": json.dumps(abstracts(5)).encode(), "ids": ids}
    with pytest.raises(InputError, match=message):
        made(recipe, tmp_path, files, files=files_of("pubmedqa", "p.json"), ids="ids")


def test_an_exam_of_another_size_than_published_is_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.dumps(abstracts(4)).encode()
    seen = hashlib.sha256(data).hexdigest()
    for name, known in (
        ("right", Published(4, 3, sha256=(seen,))), ("other", Published(4, 3, sha256=("0",))), ("more", Published(5, 3)), ("less", Published(3, 3)),
        ("wider", Published(4, 4)), ("part", Published(4, 3, by_ids=True)),
    ):  # fmt: skip
        monkeypatch.setitem(sizes.PUBLISHED, name, known)

    def sat(name: str, content: bytes = data) -> dict[str, Any]:
        return made(recipe, tmp_path, {"p.json": content}, files=files_of("pubmedqa", "p.json"), published=name)[0]

    assert sat("right")["published"] == {"name": "right", "other_files": []}
    assert sat("other")["published"] == {"name": "other", "other_files": ["p.json"]}
    for name, message in (
        ("more", "4 questions, .* published are 5"), ("less", "4 questions, .* published are 3"), ("wider", "has 3 options"), ("part", "is a part"),
        ("unheard", "no published exam 'unheard'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            sat(name)
    broken = abstracts(4) | {"9": {"QUESTION": ""}}
    facts = made(
        recipe, tmp_path, {"p.json": json.dumps(broken).encode()}, files=files_of("pubmedqa", "p.json"), published="more"
    )[0]
    assert facts["items"] == 4 and facts["dropped"]["malformed"] == 1  # the line that lacks is counted where it was lost


def test_the_subjects_of_a_published_exam_are_taken_and_each_is_counted(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [HUB | {"subject": subject, "question": f"{subject} {number}?"} for subject, number in
             [("anatomy", 1), ("anatomy", 2), ("virology", 1), ("law", 1)]]  # fmt: skip
    files = {"m.jsonl": "\n".join(map(json.dumps, [*lines, lines[0]])).encode()}  # a repeat is one of those published
    monkeypatch.setitem(sizes.PUBLISHED, "two", Published(4, 4, {"anatomy": 3, "virology": 1}))
    facts, _ = made(recipe, tmp_path, files, files=files_of("mmlu", "m.jsonl"), published="two")
    assert facts["subjects"] == {"anatomy": 2, "virology": 1} and facts["dropped"]["duplicate"] == 1
    monkeypatch.setitem(sizes.PUBLISHED, "two", Published(4, 4, {"anatomy": 3, "virology": 2}))
    with pytest.raises(InputError, match=r"1 questions of virology, .* published are 2"):
        made(recipe, tmp_path, files, files=files_of("mmlu", "m.jsonl"), published="two")


def test_worked_questions_are_kept_in_order_and_refused_when_they_are_of_the_exam_or_too_few(
    recipe: Recipe, tmp_path: Path
) -> None:
    asked = [HUB | {"question": f"{subject}?", "subject": subject} for subject in ("anatomy", "virology")]
    worked = [
        HUB | {"question": f"{subject} worked {number}?", "subject": subject}
        for subject in ("virology", "anatomy")
        for number in (1, 2)
    ]
    files = {"asked": "\n".join(map(json.dumps, asked)).encode(), "worked": "\n".join(map(json.dumps, worked)).encode()}

    def sat(count: int, uri: str = "worked") -> list[str]:
        spec = {"files": files_of("mmlu", uri), "count": count}
        return [shot.question for shot in items_of(
            made(recipe, tmp_path, files, files=files_of("mmlu", "asked"), protocol="lm_eval", shots=spec)[1][SHOTS])]  # fmt: skip

    assert sat(2) == [row["question"] for row in worked]
    with pytest.raises(InputError, match=r"2 worked questions for .*, 3 are wanted"):
        sat(3)
    with pytest.raises(InputError, match=r"is question anatomy:1 of the exam"):
        sat(1, "asked")


# ---- what is published --------------------------------------------------------------------------------------------------------


def test_the_sizes_agree_with_each_other() -> None:
    assert sum(MEDICAL_6.values()) == PUBLISHED["mmlu_medical_6"].questions == 1089
    assert sum(MEDICAL_9.values()) == PUBLISHED["mmlu_medical_9"].questions == 1871
    left = 223 + 131 + 545 + 612  # human aging, human sexuality, high school psychology, professional psychology
    assert sum(GENERAL.values()) + sum(MEDICAL_9.values()) + left == 14_042  # all of MMLU's test split
    assert not set(GENERAL) & set(MEDICAL_9) and len(GENERAL) + len(MEDICAL_9) + 4 == 57


def test_the_calibration_rows_are_the_printed_ones_and_one_average_is_not() -> None:
    printed = {row.model: (row.mean, row.printed_average) for row in PMC_LLAMA if row.printed_average is not None}
    off = {model for model, (mean, average) in printed.items() if abs((mean or 0) - (average or 0)) > 0.05}
    assert off == {"PMC-LLaMA 13B"} and printed["PMC-LLaMA 13B"] == (63.43, 64.43)
    head, *lines = table_rows()
    assert "theirs" in head[0] and all(len(line) == len(head) and line[-1] and line[-2] for line in lines)

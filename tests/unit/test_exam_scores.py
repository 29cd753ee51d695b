"""The score of an exam on all items and on clean ones, against plain counting; protocols that must not meet in one line."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_trials import recipe_with, scored, trials

from medschool.ablate.compare import Scored, make_verdict
from medschool.ablate.contamination import contamination, found_items
from medschool.ablate.exam_scores import exam_scores
from medschool.ablate.exam_table import HEADINGS, PUBLISHED_TITLE, exam_lines, exam_rows, published_rows
from medschool.ablate.report import sections, table
from medschool.ablate.written import written_scores
from medschool.artifact import Artifact, write_parquet
from medschool.errors import StageError
from medschool.exams.calibration import PEERS, PMC_LLAMA
from medschool.overlap.search import OVERLAP, OVERLAP_SCHEMA, REMOVED


def answered(right: list[bool]) -> pa.Table:
    return pa.table({"id": [f"i{k}" for k in range(len(right))], "correct": right})


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.sets(st.integers(0, 40)))
def test_both_scores_are_plain_counts(right: list[bool], found: set[int]) -> None:
    told = exam_scores(answered(right), {f"i{k}" for k in found}, 0.95)
    clean = [one for k, one in enumerate(right) if k not in found]
    assert (told["items"], told["correct"], told["accuracy"]) == (len(right), sum(right), sum(right) / len(right))
    assert told["low"] < told["accuracy"] + 1e-9 and told["high"] > told["accuracy"] - 1e-9
    part = told["uncontaminated"]
    assert (part["items"], part["correct"]) == (len(clean), sum(clean))
    assert part["accuracy"] == (sum(clean) / len(clean) if clean else None)
    assert (part["low"] is None) == (not clean) == (part["high"] is None)


def test_where_nobody_looked_nothing_is_said_of_clean_items() -> None:
    assert exam_scores(answered([True, False]), None, 0.95)["uncontaminated"] is None
    said = pa.table({"id": ["i0", "i1", "i2"], "chosen": pa.array([1, None, None], pa.int32()), "correct": [True, False, False]})
    assert written_scores(said, 0.95)["uncontaminated"] is None
    part = written_scores(said, 0.95, {"i1"})["uncontaminated"]
    assert (part["items"], part["correct"], part["unparsed"]) == (2, 1, 1)
    assert (part["accuracy"]["value"], part["parse_rate"]["value"]) == (0.5, 0.5)


def overlap_of(folder: Any, name: str, exams: list[str], pairs: list[tuple[str, str]], path: str = OVERLAP) -> Artifact:
    rows = [{"id": f"doc:{k}", "exam": exam, "item": item, "share": 1.0, "hits": 9} for k, (exam, item) in enumerate(pairs)]
    prefix = str(folder / name)
    files = (write_parquet(prefix, path, pa.Table.from_pylist(rows, OVERLAP_SCHEMA)),)
    return Artifact("overlap", "f", f"{prefix}/manifest.json", prefix, files, {"exams": {exam: {} for exam in exams}}, {}, 1.0)


def test_an_item_that_any_source_holds_is_found_and_an_exam_that_was_not_looked_for_is_unknown(tmp_path: Any) -> None:
    books = overlap_of(tmp_path, "books", ["a", "b"], [("a", "i1"), ("a", "i1")])
    papers = overlap_of(tmp_path, "papers", ["a", "b"], [("a", "i1"), ("a", "i7")])
    assert found_items({"books": books, "papers": papers}, {}) == {"a": {"i1", "i7"}, "b": frozenset()}
    assert found_items({}, {}) == {}


def test_what_a_removed_conversation_held_is_found_too_and_told_by_set(tmp_path: Any) -> None:
    papers = overlap_of(tmp_path, "papers", ["a"], [("a", "i1")])
    talks = overlap_of(tmp_path, "talks", ["a", "b"], [("a", "i2"), ("b", "i1")], REMOVED)
    assert found_items({"papers": papers}, {"talks": talks}) == {"a": {"i1", "i2"}, "b": {"i1"}}
    assert found_items({}, {"talks": talks}) == {"a": {"i2"}, "b": {"i1"}}
    counted = replace(talks, facts={"exams": {"a": {"items": 9, "found": 1, "documents": 1}}})
    assert contamination({}, {}, {"talks": counted}) == [
        {"exam": "a", "source": "instructions/talks", "items": 9, "found": 1, "documents": 1, "rows": 0}
    ]


# ---- in the verdict -----------------------------------------------------------------------------------------------------------


def verdict_of(folder: Any, found: list[Scored], in_corpus: Any = None) -> dict[str, Any]:
    import json

    make_verdict(recipe_with(), found, str(folder), in_corpus=in_corpus)
    return dict(json.loads((folder / "verdict.json").read_text()))


def test_every_score_of_the_verdict_stands_twice(tmp_path: Any) -> None:
    told = verdict_of(tmp_path, trials(), {"clinical": {"i00", "i01", "i59"}})
    for trial in told["trials"]:
        exam = trial["exams"]["clinical"]
        assert exam["protocol_name"] == "letters" and exam["written"]["protocol_name"] == "generated"
        assert exam["uncontaminated"]["items"] == 57 and exam["uncontaminated"]["correct"] == exam["correct"] - 2
        assert exam["written"]["uncontaminated"]["items"] == 6
    text = table(recipe_with(), told, {})
    assert "Clean items are those that no document of the corpus and no conversation of the instructions holds." in text
    assert max(map(len, text.splitlines())) <= 130
    assert "Clean items" not in table(recipe_with(), verdict_of(tmp_path, trials()), {})


def under(trial: Scored, hash_: str, written: str) -> Scored:
    """The trial with its answers under these protocols."""
    tables = [
        rows.append_column("protocol", pa.array([of] * rows.num_rows))
        for rows, of in ((trial.answers, hash_), (trial.written, written))
    ]
    return Scored(trial.name, trial.variant, trial.seed, trial.losses, *tables, trial.probes)


def test_scores_of_two_hashes_are_refused_whether_chosen_or_written(tmp_path: Any) -> None:
    found = [under(trial, "aaaa", "bbbb") for trial in trials()]
    exam = verdict_of(tmp_path, found)["trials"][0]["exams"]["clinical"]
    assert (exam["protocol"], exam["written"]["protocol"]) == ("aaaa", "bbbb")
    for chosen, said in (("cccc", "bbbb"), ("aaaa", "cccc")):
        mixed = [*found[:-1], under(trials()[-1], chosen, said)]
        with pytest.raises(StageError, match=r"exam clinical: was sat under different protocols: .* cccc"):
            make_verdict(recipe_with(), mixed, str(tmp_path))


# ---- the table ----------------------------------------------------------------------------------------------------------------


def entry(hash_: str, name: str = "letters", **changes: Any) -> dict[str, Any]:
    score = {"items": 40, "correct": 10, "accuracy": 0.25, "low": 0.14, "high": 0.4, "uncontaminated": None}
    return {**score, "written": None, "protocol": hash_, "protocol_name": name, **changes}


def said(hash_: str, **changes: Any) -> dict[str, Any]:
    shares = {"value": 0.5, "low": 0.2, "high": 0.8}
    return {
        "items": 8, "correct": 4, "unparsed": 2, "letters": {"A": 6}, "parse_rate": shares, "accuracy": shares, "protocol": hash_,
        "protocol_name": "generated", "uncontaminated": None, **changes,
    }  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from(["", "v", "x"])), min_size=1, max_size=6)
)
def test_no_line_has_scores_of_two_hashes_and_those_of_one_stand_together(drawn: list[tuple[str, str, str]]) -> None:
    found = [
        {"name": f"t{k}", "exams": {exam: entry(hash_, written=said(spoken) if spoken else None)}}
        for k, (exam, hash_, spoken) in enumerate(drawn)
    ]
    lines = exam_lines(found)
    keys = [(line.exam, line.protocol, line.hash) for line in lines]
    assert [key for k, key in enumerate(keys) if not k or keys[k - 1] != key] == list(dict.fromkeys(keys))
    expected = [(f"t{k}", exam, hash_) for k, (exam, hash_, _) in enumerate(drawn)]
    expected += [(f"t{k}", exam, spoken) for k, (exam, hash_, spoken) in enumerate(drawn) if spoken not in ("", hash_)]
    assert sorted((line.variant, line.exam, line.hash) for line in lines) == sorted(expected)


def test_the_share_that_cannot_be_read_stands_beside_generated_scores_alone() -> None:
    thought = entry("cc", "chain_of_thought", written=said("cc", items=40, unparsed=30))
    both = entry("aa", written=said("bb", uncontaminated=said("bb", items=0, accuracy=dict.fromkeys(("value", "low", "high")))))
    rows = exam_rows([{"name": "base", "exams": {"e": both, "f": thought}}])
    shown = "25.0% [14.0, 40.0]"
    assert rows == [
        HEADINGS,
        ["base", "e", "letters", "aa", "40", shown, "-", "-", "-"],
        ["base", "e", "generated", "bb", "8", "50.0% [20.0, 80.0]", "0", "-", "25% of 8"],
        ["base", "f", "chain_of_thought", "cc", "40", shown, "-", "-", "75% of 40"],
    ]


def test_results_of_an_older_release_have_a_table_too() -> None:
    old = {"items": 40, "accuracy": 0.25, "low": 0.14, "high": 0.4, "written": {"items": 8, "correct": 2, "unparsed": 4}}
    assert exam_rows([{"name": "base", "exams": {"e": old}}])[1:] == [
        ["base", "e", "-", "-", "40", "25.0% [14.0, 40.0]", "-", "-", "-"],
        ["base", "e", "generated", "-", "8", "25.0%", "-", "-", "50% of 8"],
    ]


def test_what_others_have_printed_stands_below_exams_that_they_sat(tmp_path: Any) -> None:
    assert len(published_rows(recipe_with())) == 1  # MMLU: none of theirs
    recipe = recipe_with(exams={"clinical": {"files": [{"uri": "raw/exam/*", "format": "medqa"}]}})
    assert len(published_rows(recipe)) == 1 + len(PMC_LLAMA) + len(PEERS)
    told = verdict_of(tmp_path, [scored("base", None, {}, 15, (8, 8)), *trials()[1:]])
    titles = [title for title, _ in sections(recipe, told, {}, (), theirs=True)]
    assert titles.index(PUBLISHED_TITLE) == 1 + next(k for k, title in enumerate(titles) if title.startswith("Exams, accuracy"))
    assert PUBLISHED_TITLE not in [title for title, _ in sections(recipe, told, {}, ())]

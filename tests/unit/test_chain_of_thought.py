"""The protocol `chain_of_thought`: its prompt, its hash, what becomes of an answer, and which recipes may ask for it."""

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError
from scored_trials import BASE, Scored, recipe_with, trials

from medschool.ablate.compare import make_verdict
from medschool.evaluate import answer
from medschool.evaluate.answer import as_scores, write_answers
from medschool.evaluate.exams import EXAM_SCORES_SCHEMA
from medschool.evaluate.protocol import protocol_name, sitting
from medschool.exams.layout import DIRECT_INSTRUCTIONS, RATIONALE_INSTRUCTIONS
from medschool.procedure import stages
from medschool.recipe import Recipe
from medschool.recipe.corpus import Files
from medschool.recipe.evaluation import Exam
from medschool.rows import ExamItem, Message

FILES = (Files(uri="raw/e", format="mmlu"),)
SPEC = Exam(files=FILES, protocol="chain_of_thought", thought_tokens=64)
ITEMS = [ExamItem(f"s:{k}", "e", "s", f"Which one of {k}?", ("w", "x", "y", "z"), 1, "", "f") for k in range(4)]


class Plain:
    """A template without markup, whose tokens are characters."""

    def prompt(self, messages: list[Message]) -> list[int]:
        return [ord(sign) for message in messages for sign in message.content]


class Config:
    class config:
        max_position_embeddings = 1000


def test_it_asks_for_reasons_and_reads_the_first_option_that_is_called_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "###Rationale: b.\n###Answer: OPTION B IS CORRECT.",
        "So it is option c is correct, not OPTION B IS CORRECT",
        "I think B.",
        "",
    ]
    asked: list[Any] = []

    def said(model: Any, template: Any, prompts: list[list[int]], most: int) -> list[str]:
        asked.append((["".join(map(chr, prompt)) for prompt in prompts], most))
        return texts

    monkeypatch.setattr(answer, "greedy_texts", said)
    template: Any = Plain()
    written = write_answers(Config, template, ITEMS, 64, "hash", RATIONALE_INSTRUCTIONS[0])
    ((prompts, most),) = asked
    assert most == 64 and all(prompt.startswith(f"{RATIONALE_INSTRUCTIONS[0]}\n\n###Question: ") for prompt in prompts)
    scores = as_scores(written, [*ITEMS, ITEMS[0]])
    assert scores.schema == EXAM_SCORES_SCHEMA
    assert scores.select(["id", "chosen", "correct", "answer", "protocol"]).to_pylist() == [
        {"id": f"s:{k}", "chosen": chosen, "correct": chosen == 1, "answer": 1, "protocol": "hash"}
        for k, chosen in enumerate([1, 2, None, None])
    ]
    assert written.column("problem").to_pylist() == ["", "", "unread", "empty"]
    assert written.column("text").to_pylist() == texts


def test_the_hash_freezes_the_instruction_the_tokens_and_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    from medschool.evaluate import protocol

    mine = sitting(SPEC, ITEMS, ()).protocol("{{ x }}")
    longer = sitting(SPEC.model_copy(update={"thought_tokens": 65}), ITEMS, ())
    direct = sitting(Exam(files=FILES, generated_items=4), ITEMS, ())
    others = [
        sitting(SPEC, ITEMS, ()).protocol("{{ y }}"),
        sitting(SPEC, ITEMS[1:], ()).protocol("{{ x }}"),
        longer.protocol("{{ x }}"),
        direct.written("{{ x }}", 64),
        direct.protocol("{{ x }}"),
    ]
    assert len({mine.hash, *(other.hash for other in others)}) == 6
    assert "at most 64 tokens; an answer that cannot be read is wrong" in mine.policy and RATIONALE_INSTRUCTIONS[0] in mine.prompt
    assert DIRECT_INSTRUCTIONS[0] not in mine.prompt and protocol_name(SPEC) == "chain_of_thought"
    monkeypatch.setattr(protocol, "_THOUGHT_ABOUT", "another wording")
    assert sitting(SPEC, ITEMS, ()).protocol("{{ x }}").hash != mine.hash


def with_exam(**changes: Any) -> Recipe:
    return recipe_with(exams={"clinical": BASE["exams"]["clinical"] | changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "chain_of_thought"}, "thought_tokens: belongs to protocol: chain_of_thought"),
        ({"thought_tokens": 9}, "thought_tokens: belongs to protocol: chain_of_thought"),
        (
            {"protocol": "chain_of_thought", "thought_tokens": 9, "generated_items": 1},
            "generated_items: a chain of thought is in words",
        ),
    ],
)
def test_a_recipe_says_how_long_a_thought_may_be_and_only_of_thoughts(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        with_exam(**changes)


def test_it_changes_what_is_evaluated_and_not_what_is_asked() -> None:
    def sections(recipe: Recipe, kind: str) -> Any:
        return next(stage for stage in stages(recipe) if stage.name.startswith(kind)).sections

    letters, short, long = with_exam(), *(with_exam(protocol="chain_of_thought", thought_tokens=most) for most in (9, 10))
    assert sections(letters, "exams/") == sections(short, "exams/") == sections(long, "exams/")
    found = [sections(recipe, "evaluate/")["samples"] for recipe in (letters, short, long)]
    assert found[0] == {"clinical": [None, 0, "letters"]} and found[1] != found[2] != found[0]


def test_the_verdict_shows_one_score_with_the_share_that_cannot_be_read(tmp_path: Any) -> None:
    import json

    from medschool.ablate.exam_table import exam_rows

    def thought(trial: Scored) -> Scored:
        texts = trial.answers.append_column("text", pa.array(["t"] * 60)).append_column("protocol", pa.array(["cc"] * 60))
        names = [name if name != "chosen" else "was" for name in texts.column_names]
        chosen = pa.array([None if k % 4 == 0 else 0 for k in range(60)], pa.int32())
        written = texts.rename_columns(names).append_column("chosen", chosen)
        answers = written.select(["exam", "id", "answer", "chosen", "correct", "protocol"])
        return Scored(trial.name, trial.variant, trial.seed, trial.losses, answers, written, trial.probes)

    recipe = with_exam(protocol="chain_of_thought", thought_tokens=9)
    make_verdict(recipe, [thought(trial) for trial in trials()], str(tmp_path), in_corpus={"clinical": {"i00"}})
    found = json.loads((tmp_path / "verdict.json").read_text())["trials"]
    rows = exam_rows(found)[1:]
    assert len(rows) == len(found) and {row[2] for row in rows} == {"chain_of_thought"} and {row[3] for row in rows} == {"cc"}
    assert {(row[4], row[6], row[8]) for row in rows} == {("60", "59", "25% of 60")}

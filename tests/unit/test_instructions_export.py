"""The exported instructions, read back by the `datasets` library. All texts are invented."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from medschool.artifact import Artifact, Output, make, write_parquet
from medschool.cli import app
from medschool.corpus.dataset_folder import card_head, new_folder
from medschool.errors import InputError, StageError
from medschool.instructions.export import SCHEMA, export_instructions, sha256_of
from medschool.procedure import recipe_digest, resolve_all
from medschool.recipe import Recipe, load
from medschool.rows import CONVERSATION_SCHEMA, Conversation, Message, table

ROOT = Path(__file__).parents[2]
TEACHER = {"model": "clockwork-7b", "asked": 40, "accepted": 31, "acceptance": 0.775}
WORDS = ['Ärztin:\tSee "this".', "A kidney.\n\nTwo.", "🩺", "plain"]


def talk(name: str, number: int) -> Conversation:
    turns = [Message("user", f"{WORDS[number % 4]} {number}?"), Message("assistant", WORDS[(number + 1) % 4])]
    return Conversation(f"{name}:{number}", name, "graph", tuple(turns * (1 + number % 2)), "hpo", "raw/hpo.obo", f"HP:{number}")


def made(folder: Path, name: str, talks: int, **facts: Any) -> Artifact:
    rows = [talk(name, number) for number in range(talks)]
    files = [
        write_parquet(str(folder), f"conversations/{part:05}.parquet", table(half, CONVERSATION_SCHEMA))
        for part, half in enumerate((rows[: talks // 2], rows[talks // 2 :]))
    ]
    facts = {"conversations": talks, "dropped": {"licence": 3, "exam": 1}, "left_out": {"balance": 12}} | facts
    return Artifact(f"instructions/{name}", "f", "manifest", str(folder), tuple(files), facts, {}, 0.0)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(ROOT / "recipes" / "quickstart.yaml")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield str(tmp_path / "cache")


def test_datasets_reads_every_conversation_as_it_was(tmp_path: Path, recipe: Recipe, cache: str) -> None:
    import datasets

    out, said = tmp_path / "out", []
    sets = {"graph": made(tmp_path / "g", "graph", 7), "rationale": made(tmp_path / "r", "rationale", 4, teacher=TEACHER)}
    found = export_instructions(recipe, sets, out, said.append)
    read = datasets.load_dataset(str(out), "graph", split="train", cache_dir=cache)
    assert read.column_names == SCHEMA.names and datasets.get_dataset_config_names(str(out)) == ["graph", "rationale"]
    for number, row in enumerate(read):
        was = talk("graph", number)
        turns = [{"role": turn.role, "content": turn.content} for turn in was.messages]
        assert row == {
            "id": was.id, "set": "graph", "kind": "graph", "messages": turns, "licence": "hpo", "uri": "raw/hpo.obo",
            "document": was.document,
            "sha256": hashlib.sha256(json.dumps(turns, sort_keys=True, separators=(",", ":")).encode()).hexdigest(),
        }  # fmt: skip
    other = datasets.load_dataset(str(out), "rationale", split="train", cache_dir=cache)
    assert len(read) == 7 and other["set"][:] == ["rationale"] * 4
    one = found["graph"]
    assert (one.conversations, one.turns, one.licences, one.teacher) == (7, 20, {"hpo": 7}, None)
    assert one.chars == sum(len(turn.content) for number in range(7) for turn in talk("graph", number).messages)
    assert said == [
        f"graph: 7 conversations, {one.chars} characters",
        f"rationale: 4 conversations, {found['rationale'].chars} characters",
    ]


def test_the_card_says_what_is_in_it_and_how_it_was_made(tmp_path: Path, recipe: Recipe) -> None:
    sets = {"graph": made(tmp_path / "g", "graph", 7), "rationale": made(tmp_path / "r", "rationale", 4, teacher=TEACHER)}
    export_instructions(recipe, sets, tmp_path / "out", print)
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "other" and head["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in head["configs"]] == ["graph", "rationale"]
    for line in (
        "| graph | graph | 7 |", "| rationale | hpo | 4 |", "| graph | licence | 3 |", "| graph | balance | 12 |",
        "| graph | `raw/hpo/hp.obo` | hpo_graph |", "| rationale | clockwork-7b |", "| 40 | 31 | 77.5% |",
        "Not for clinical use", "seed 7", "mmlu_clinical",
    ):  # fmt: skip
        assert line in card, line
    assert "| graph | clockwork-7b" not in card
    export_instructions(recipe, {"graph": sets["graph"]}, tmp_path / "alone", print)
    assert "Teacher" not in (tmp_path / "alone" / "README.md").read_text()


def test_the_digest_of_the_card_is_that_of_the_recipe(tmp_path: Path, recipe: Recipe) -> None:
    other = load(ROOT / "recipes" / "quickstart.yaml", ["seed=8"])
    for number, one in enumerate((recipe, other)):
        export_instructions(one, {"graph": made(tmp_path / f"{number}", "graph", 2)}, tmp_path / f"out{number}", print)
        assert f"digest `{recipe_digest(one)}`" in (tmp_path / f"out{number}" / "README.md").read_text()
    assert recipe_digest(recipe) != recipe_digest(other)


def test_the_command_exports_finished_sets_and_names_what_is_missing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSCHOOL_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("MEDSCHOOL_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    plain = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    plain |= {"exams": {}, "name": "small", "gate": plain["gate"] | {"keeps": []}}
    Path("small.yaml").write_text(yaml.safe_dump(plain))
    for name in ("raw/hpo/hp.obo", "raw/icd10cm/codes.xml"):
        Path("store", name).parent.mkdir(parents=True)
        Path("store", name).write_text("x")
    stage = resolve_all(load(Path("small.yaml")), str(tmp_path / "store"))["instructions/graph"]

    def do(prefix: str) -> Output:
        one = made(Path(prefix), "graph", 5)
        return Output(one.files, one.facts)

    make(str(tmp_path / "store"), "instructions/graph", str(stage.fingerprint), {}, do)
    words = ["export", "instructions", "small.yaml", "--of", "graph"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).output.endswith("wrote small-instructions/README.md\n")
    assert len(pq.read_table("small-instructions/data/graph")) == 5
    told = CliRunner().invoke(app, [*words, "--to", "other", "--json"], catch_exceptions=False).output
    assert json.loads(told)["graph"]["conversations"] == 5
    for more, problem in (([], "not empty"), (["--of", "coding", "--to", "x"], "not finished"), (["--of", "nix"], "no set")):
        assert problem in str(CliRunner().invoke(app, [*words, *more]).exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "small-instructions", "small.yaml", "store"]


def test_a_set_that_lost_rows_is_not_exported(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(StageError, match="holds 4 conversations, its manifest says 5"):
        export_instructions(recipe, {"graph": made(tmp_path / "g", "graph", 4, conversations=5)}, tmp_path / "out", print)
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_a_folder_with_something_in_it_is_left_alone_and_an_empty_one_is_filled(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        with pytest.raises(InputError, match="not empty"), new_folder(tmp_path / name):
            raise AssertionError("never comes here")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with new_folder(tmp_path / name) as folder:
            (folder / "a").touch()
            assert not list((tmp_path / "empty").iterdir()) or name == "new", "nothing is there before the whole is"
        assert (tmp_path / name / "a").exists()
    with pytest.raises(ValueError), new_folder(tmp_path / "broken") as folder:
        (folder / "a").touch()
        raise ValueError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full", "new"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("user", "assistant")), st.text()), min_size=1))
def test_the_digest_of_messages_is_that_of_their_words_and_order(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    assert sha256_of(messages) == sha256_of([{"content": content, "role": role} for role, content in turns])
    assert sha256_of(messages) != sha256_of([*messages, {"role": "user", "content": ""}])
    changed = [*messages[:-1], messages[-1] | {"content": messages[-1]["content"] + " "}]
    assert sha256_of(messages) != sha256_of(changed)


@pytest.mark.parametrize(
    ("rows", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (500_000, "100K<n<1M"), (10_000_000, "n>10M")]
)
def test_the_size_of_a_set_has_its_name(rows: int, name: str) -> None:
    assert yaml.safe_load(card_head(["a"], "text-generation", rows).split("---\n")[1])["size_categories"] == [name]

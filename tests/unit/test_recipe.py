"""The recipe: what loads, what is refused, and that every refusal names file, line, key, problem and remedy."""

from pathlib import Path

import pytest

from medschool.errors import RecipeError
from medschool.recipe import load
from medschool.recipe.dump import dump, with_values

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load(path).name == path.stem


def test_the_paper_s_numbers_are_in_its_recipes() -> None:
    for size in ("7b", "13b"):
        recipe = load(ROOT / "recipes" / f"pmc_llama_{size}.yaml")
        assert recipe.variants["knowledge"].weights == {"books": 15, "papers": 4, "general": 1}
        assert (recipe.tokens.row_tokens, recipe.pretrain.batch_rows, recipe.pretrain.optimizer.lr) == (2048, 3200, 2e-5)
        assert (recipe.pretrain.length.epochs, recipe.pretrain.length.epochs_of) == (5, "books")


def written(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = QUICKSTART.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def line_of(path: Path, fragment: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if fragment in line)


@pytest.mark.parametrize(
    ("old", "new", "key", "problem", "remedy"),
    [
        ("  batch_rows: 20 ", "  batch_row: 20 ", "pretrain.batch_row", "unknown key", "did you mean `batch_rows`"),
        ("min_chars: 100", "min_chars: many", "clean.min_chars", "integer", "give a value"),
        ("  min_chars: 100", "  min_chars: 0", "clean.min_chars", "greater than 0, got 0", "give a value"),
        (
            "{books: 15, papers: 4, general: 1}",
            "{books: 15, papers: -4, general: 1}",
            "papers",
            "greater than 0, got -4",
            "value",
        ),
        ("{books: 15, papers: 4, general: 1}", "15:4:1", "variants.knowledge.weights", "got '15:4:1'", "value"),
        (
            "{books: 15, papers: 4, general: 1}",
            "{boks: 15}",
            "variants.knowledge.weights",
            "'boks' is not one of books",
            "correct",
        ),
        ("dtype: bf16", "dtype: no", "model.dtype", "got 'no'", "value"),
        ("control: control", "control: plain", "gate.control", "'plain' is not one of base, control", "correct"),
        ("  control: control", "  control: knowledge", "gate.control", "is a candidate itself", "correct"),
        ("  control: control", "  control: base", "gate.control", "'base' has no weights and no instructions", "correct"),
        ("length: {steps: 9}", "length: {steps: 9, epochs: 2}", "pretrain.length", "exactly one", "correct"),
        (
            "{exam_questions: 4,",
            "{exam_question: 4,",
            "variants.instructed.instructions",
            "'exam_question' is not one of",
            "correct",
        ),
        ("improves: [papers]", "improves: [paper]", "gate.improves", "'paper' is not one of books, papers, general", "correct"),
        ("keeps: [mmlu_clinical]", "keeps: [usmle]", "gate.keeps", "'usmle' is not one of mmlu_clinical", "correct"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(tmp_path: Path, old: str, new: str, key: str, problem: str, remedy: str) -> None:
    path = written(tmp_path, (old, new))
    with pytest.raises(RecipeError) as raised:
        load(path)
    error = raised.value
    assert error.where == f"{path}:{line_of(path, new.strip())}"
    assert key in error.problem and problem in error.problem and remedy in error.remedy


def test_yaml_s_traps_are_closed(tmp_path: Path) -> None:
    assert load(written(tmp_path, ("lr: 2e-4", "lr: 3e-5"))).pretrain.optimizer.lr == 3e-5
    with pytest.raises(RecipeError, match="given twice") as raised:
        load(written(tmp_path, ("seed: 7", "seed: 7\nseed: 8")))
    assert raised.value.where.endswith(":5")
    with pytest.raises(RecipeError, match="seed"):
        load(written(tmp_path, ("seed: 7", "seed: 0x10")))
    assert load(written(tmp_path, ("seed: 7", "seed: 010"))).seed == 10
    with pytest.raises(RecipeError, match="unknown key"):
        load(written(tmp_path, ("clean:", "clean:\n  <<: {min_chars: 3}")))


def test_overrides_are_typed_and_named() -> None:
    recipe = load(QUICKSTART, ["pretrain.length.steps=4", "variants.knowledge.weights={books: 1}"])
    assert recipe.pretrain.length.steps == 4
    assert recipe.variants["knowledge"].weights == {"books": 1}
    for override, problem in (("pretrain.length.steps", "form"), ("name.x=1", "parent"), ("seed=-1", "greater than or equal")):
        with pytest.raises(RecipeError, match=problem) as raised:
            load(QUICKSTART, [override])
        assert raised.value.where == f"--set {override}"


def test_a_recipe_written_out_loads_to_the_same_recipe(tmp_path: Path) -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        recipe = load(path)
        (tmp_path / "again.yaml").write_text(dump(recipe), encoding="utf-8")
        assert load(tmp_path / "again.yaml") == recipe


def test_other_values_give_another_checked_recipe() -> None:
    recipe = with_values(load(QUICKSTART), {"pretrain.optimizer.lr": 1e-3, "budget": None})
    assert recipe.pretrain.optimizer.lr == 1e-3 and recipe.budget is None
    with pytest.raises(RecipeError, match="unknown key"):
        with_values(load(QUICKSTART), {"pretrain.optimizer.learning_rate": 1e-3})
    with pytest.raises(RecipeError, match="its parent is not a section"):
        with_values(load(QUICKSTART), {"name.of": 3})


def test_a_missing_file_suggests_its_neighbour() -> None:
    with pytest.raises(RecipeError, match=r"quickstart\.yaml\?"):
        load(ROOT / "recipes" / "quickstar.yaml")


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: a\nmodel: {uri: [\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="not readable as YAML") as raised:
        load(path)
    assert raised.value.where.startswith(f"{path}:")


@pytest.mark.parametrize("value", ["!foo 3", "!!int abc", "&a [*a]", "*a", "&a 3", "9" * 5000, "[" * 5000, "[1"])
def test_a_value_that_is_not_plain_yaml_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(RecipeError, match="the value is not readable as YAML") as raised:
        load(QUICKSTART, [f"seed={value}"])
    assert raised.value.where == f"--set seed={value}" and raised.value.remedy
    with pytest.raises(RecipeError, match="not readable as YAML") as raised:
        load(written(tmp_path, ("seed: 7", f"seed: {value}")))
    assert raised.value.where.startswith(str(tmp_path / "r.yaml"))

"""A template that the recipe names: in which stages it counts, and that the exported checkpoint carries it."""

from pathlib import Path
from typing import Any

import pytest
from tiny import RECIPE

from medschool.instructions.pmc_llama import PMC_LLAMA
from medschool.procedure import stages
from medschool.recipe import Recipe, load
from medschool.train.export import write_model


def recipe_with(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return load(path, list(overrides))


def test_a_named_template_changes_what_carries_or_asks_it_and_no_text_or_rows_of_text(tmp_path: Path) -> None:
    plain, named = (
        {stage.name: stage.sections for stage in stages(recipe_with(tmp_path, f"chats.template={name}"))}
        for name in ("model", "pmc_llama")
    )
    changed = {name.split("/")[0] for name in plain if plain[name] != named[name]}
    assert changed == {"chats", "pretrain", "instruct", "evaluate"}
    without_chats = [*stages(recipe_with(tmp_path)), *stages(recipe_with(tmp_path, "chats.template=model"))]
    assert all("template" not in stage.sections for stage in without_chats)


@pytest.mark.parametrize(("template", "carried"), [("model", "the model's own"), ("pmc_llama", PMC_LLAMA)])
def test_the_export_carries_the_template(tmp_path: Path, template: str, carried: str) -> None:
    class Module:
        def save_pretrained(self, folder: Path, **about: Any) -> None:
            (folder / "config.json").write_text("{}", encoding="utf-8")

    base, folder = tmp_path / "base", tmp_path / "export"
    base.mkdir()
    (base / "chat_template.jinja").write_text("the model's own", encoding="utf-8")
    write_model(Module(), {}, base, folder, template)
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == carried

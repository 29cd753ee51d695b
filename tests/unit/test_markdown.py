"""The report as Markdown: the tables of the text report, and nothing from outside that acts as markup."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from scored_trials import BASE, promoted_recipe
from test_page import bare, sample

from medschool.ablate.gain import Gain
from medschool.ablate.markdown import escaped, markdown, table

RECIPE = promoted_recipe(**{key: BASE[key] for key in ("sources", "exams")})


def test_every_table_of_the_text_report_is_a_table_here() -> None:
    gain = Gain("accuracy", "mmlu_clinical", "instructed", "control", 0.06, 4.0, 0.0)
    text = markdown(RECIPE, replace(sample((7, 8)), gains=(gain,)))
    titles = [line.removeprefix("## ").split(",")[0].split(":")[0] for line in text.splitlines() if line.startswith("## ")]
    assert titles[:2] == ["Held-out perplexity (lower is better)", "Exams"]
    assert {
        "Changes on the same documents and items",
        "Forgetting",
        "Gain an hour of training",
        "Time of each stage",
        "How to reproduce",
    } <= set(titles)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines) and sum(line.startswith("| :--") for line in lines) == len(titles) - 1
    row = next(line for line in lines if line.startswith("| instructed - knowledge | accuracy"))
    assert row.endswith("| cannot tell | n 14,000 or 5 seeds |") or "helped" in row
    assert "**helped**" in text and "Not for clinical use." in text and "```yaml\nname: quickstart" in text


def test_what_is_not_there_has_no_heading() -> None:
    text = markdown(RECIPE, bare())
    assert text.count("\n## ") == 2 and "**cannot tell**" in text  # perplexity, how to reproduce


def test_a_recipe_with_fences_stays_in_its_block() -> None:
    text = markdown(RECIPE, replace(bare(), recipe_yaml="name: x\n````\n<b>"))
    assert text.rstrip().endswith("`````yaml\nname: x\n````\n<b>\n`````")


@given(st.text())
def test_no_cell_breaks_its_row(text: str) -> None:
    (row,) = table([["a", "b"], [text, "x"]])[2:]
    bars = [
        place for place, sign in enumerate(row) if sign == "|" and (len(row[:place]) - len(row[:place].rstrip("\\"))) % 2 == 0
    ]
    assert len(bars) == 3 and "\n" not in row


def test_markup_is_shown_not_obeyed() -> None:
    assert escaped("a_b **c** <script> [x](y) | `d` # ~e~ f\ng") == (r"a\_b \*\*c\*\* \<script\> \[x\](y) \| \`d\` \# \~e\~ f g")

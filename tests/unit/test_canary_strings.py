"""Canaries: the same for the same recipe, told apart by their prompts, planted as often as asked, untouched on their way."""

import re
from collections import Counter
from pathlib import Path

import pytest

from medschool.corpus.canaries import ARTICLE_TYPE, SECRET_DIGITS, canaries, canary_documents, is_canary
from medschool.corpus.clean import clean_text
from medschool.recipe import Recipe, load
from medschool.rows import DOCUMENT_SCHEMA, table

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


def recipe(*overrides: str, count: int = 7) -> Recipe:
    return load(QUICKSTART, [f"canaries={{source: papers, count: {count}, repeats: [1, 4, 16]}}", *overrides])


def test_they_are_dealt_to_the_numbers_of_repeats_in_turn() -> None:
    made = canary_documents(recipe(), "papers")
    repeats = Counter(document.id.rpartition(":")[0] for document in made)
    assert [repeats[f"canary:{number:04}"] for number in range(7)] == [1, 4, 16, 1, 4, 16, 1]
    assert len({document.id for document in made}) == len(made) == 43
    assert {"canary:0002:1", "canary:0002:16"} < {document.id for document in made}
    assert {document.text for document in made} == {canary.text for canary in canaries(recipe())}
    assert all(
        document.article_type == ARTICLE_TYPE and is_canary(document.id) and document.source == "papers" for document in made
    )
    assert table(made, DOCUMENT_SCHEMA).num_rows == 43


def test_they_go_into_the_named_source_alone_and_nowhere_unless_asked_for() -> None:
    assert canary_documents(recipe(), "books") == []
    assert canaries(load(QUICKSTART)) == [] == canary_documents(load(QUICKSTART), "papers")


def test_prompts_differ_and_secrets_are_nine_digits_drawn_evenly() -> None:
    many = canaries(recipe(count=3000))
    assert len({canary.prompt for canary in many}) == 3000 and len({canary.secret for canary in many}) > 2990
    assert all(re.fullmatch(r"\d{9}", canary.secret) and SECRET_DIGITS == 9 for canary in many)
    digits = Counter("".join(canary.secret for canary in many))
    assert set(digits) == set("0123456789") and all(abs(count / 27_000 - 0.1) < 0.01 for count in digits.values())
    assert all("invented" in canary.prompt and canary.text == f"{canary.prompt} {canary.secret}." for canary in many)


def test_another_seed_gives_others_and_a_longer_list_begins_alike() -> None:
    assert canaries(recipe()) == canaries(recipe(count=20))[:7]
    other = {canary.secret for canary in canaries(recipe("seed=8"))}
    assert not other & {canary.secret for canary in canaries(recipe())}


def test_cleaning_would_change_nothing_in_them() -> None:
    for document in canary_documents(recipe(count=50), "papers"):
        assert clean_text(document.text) == document.text


@pytest.mark.parametrize("id_", ["pmid:1", "raw/canary:1", "", "canaries:0001:1"])
def test_no_other_document_is_taken_for_one(id_: str) -> None:
    assert not is_canary(id_)

"""One draft through all checks: each refuses what it should, in its order, with the value that decided."""

from dataclasses import replace
from datetime import date

import pytest

from medschool.corpus.admit import CHECKS, QUARANTINE, Terms, admit
from medschool.corpus.clean import Rules
from medschool.errors import RecipeError
from medschool.recipe.corpus import Identifiers
from medschool.rows import Document, Draft, Dropped, Span

TEXT = (
    "The first patient was a woman of middle age with pain in the left knee. She had been treated at home for three weeks, and "
    "the swelling did not go down. An image of the joint showed fluid but no fracture.\n\n"
    "We gave a small dose of the drug on the first day, and a larger one on the second. The fever fell within hours."
)
DRAFT = Draft("pmid:12", "papers", TEXT, "A case", "cc-by", 2020, "case-reports", "raw/a.xml")
TERMS = Terms(Rules(40, frozenset({"cc-by"})), frozenset(), frozenset({"pmid:99"}), frozenset({"en"}), (), None)
GERMAN = (
    "Der Junge wurde mit hohem Fieber und einem Ausschlag, der sich von der Brust auf beide Arme ausgebreitet hatte, auf die "
    "Station gebracht. Er bekam in der Nacht Flüssigkeit, und am nächsten Morgen ging der Ausschlag zurück."
)
PHONE = TEXT + " For results call her at home, phone 555-201-3344."
SCAN = Identifiers(max_per_document=0)


def refused(draft: Draft, terms: Terms = TERMS) -> Dropped:
    row = admit(draft, terms, None).row
    assert isinstance(row, Dropped)
    assert (row.id, row.source, row.uri) == (draft.id, draft.source, draft.uri) and row.step in CHECKS
    return row


def test_a_draft_becomes_a_document_with_all_that_is_known_of_it() -> None:
    row = admit(DRAFT, TERMS, date(2026, 11, 22)).row
    assert isinstance(row, Document) and row.text == TEXT and len(row.sha256) == 64 and row.retrieved == "2026-11-22"
    assert (row.id, row.title, row.licence, row.year, row.article_type) == ("pmid:12", "A case", "cc-by", 2020, "case-reports")
    nameless = admit(DRAFT, TERMS, None).row
    assert isinstance(nameless, Document) and nameless.retrieved == ""


@pytest.mark.parametrize(
    ("draft", "terms", "step", "reason"),
    [
        (replace(DRAFT, retracted=True), TERMS, "retracted", "its file says so"),
        (replace(DRAFT, id="pmid:99.2"), TERMS, "retracted", "on the list"),
        (replace(DRAFT, licence="cc-by-nc"), TERMS, "licence", "cc-by-nc is not among the allowed ones (cc-by)"),
        (replace(DRAFT, text="Too little."), TERMS, "too_short", "11 characters, at least 40"),
        (replace(DRAFT, text=GERMAN), TERMS, "language", "language is de"),
        (DRAFT, replace(TERMS, quality=("gopher", "c4"), rules=replace(TERMS.rules, min_chars=1)), "", ""),
        (replace(DRAFT, text=TEXT + " Code {x}."), replace(TERMS, quality=("fineweb", "c4")), "quality", "c4: curly_bracket"),
        (replace(DRAFT, text=PHONE), replace(TERMS, identifiers=SCAN), "identifiers", "phone"),
    ],
)
def test_each_check_refuses_with_the_value_that_decided(draft: Draft, terms: Terms, step: str, reason: str) -> None:
    if not step:
        assert isinstance(admit(draft, terms, None).row, Document)
        return
    row = refused(draft, terms)
    assert row.step == step and reason in row.reason


def test_the_first_check_in_order_is_the_one_that_is_named() -> None:
    everything = replace(DRAFT, retracted=True, licence="other", text=GERMAN + " {")
    strict = replace(TERMS, quality=("c4",))
    assert refused(everything, strict).step == "retracted"
    assert refused(replace(everything, retracted=False), strict).step == "licence"
    assert refused(replace(everything, retracted=False, licence="cc-by"), strict).step == "language"
    steps = list(CHECKS)
    assert [steps.index(step) for step in ("retracted", "licence", "too_short", "language", "quality", "identifiers")] == list(
        range(6)
    )


def test_identifiers_are_counted_in_what_is_taken_too_and_never_quoted_in_what_is_not() -> None:
    draft = replace(DRAFT, text=PHONE)
    lenient = admit(draft, replace(TERMS, identifiers=Identifiers(max_per_document=3)), None)
    assert isinstance(lenient.row, Document) and lenient.found == {"phone": 1}
    row = refused(replace(draft, text=PHONE[-60:] + TEXT), replace(TERMS, identifiers=SCAN))
    assert row.step in QUARANTINE and "555-201-3344" not in row.reason + row.sample and "[phone]" in row.sample
    assert admit(draft, TERMS, None).found == {}


def test_what_the_steps_take_is_told_and_a_step_that_is_off_takes_nothing() -> None:
    text = "Ann Other, A. Colleague\n\n" + TEXT
    draft = replace(DRAFT, text=text, spans=(Span("authors", 0, 23),))
    with_steps, without = admit(draft, TERMS, None), admit(draft, replace(TERMS, off=frozenset({"authors"})), None)
    assert [removed.step for removed in with_steps.removed] == ["authors"] and with_steps.removed[
        0
    ].sample == "Ann Other, A. Colleague"
    assert isinstance(with_steps.row, Document) and with_steps.row.text == TEXT
    assert isinstance(without.row, Document) and without.row.text == text and not without.removed


def test_a_step_that_is_none_is_named() -> None:
    with pytest.raises(RecipeError, match="authours"):
        admit(DRAFT, replace(TERMS, off=frozenset({"authours"})), None)

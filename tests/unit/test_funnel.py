"""The funnel: every character accounted for, merging in any order, and the table and page it becomes."""

import json
import re
from functools import reduce

import lxml.html
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.corpus.clean import clean_text
from medschool.corpus.funnel import FUNNEL_SCHEMA, SAMPLES, Funnel, page, rows, table
from medschool.corpus.steps import STEPS, run_steps
from medschool.rows import Document, Draft, Dropped, Span

CHECKS = ("retracted", "licence", "too_short", "duplicate")


def draft(number: int, text: str, *spans: Span) -> Draft:
    return Draft(f"id:{number}", "papers", text, "", "cc-by", None, "article", "raw/x", tuple(spans))


def document(row: Draft) -> Document:
    return Document(row.id, row.source, clean_text(row.text), "", row.licence, None, row.article_type, row.uri)


def dropped(id: str, step: str, sample: str = "what went") -> Dropped:
    return Dropped(id, "papers", step, "because", sample, "raw/x")


def counted(row: Draft, check: str = "") -> Funnel:
    """The funnel of one draft, dropped by `check` after the steps if there is one."""
    better, removed = run_steps(row)
    return Funnel("papers").add(row, removed, dropped(row.id, check) if check else document(better))


def example() -> Funnel:
    """Six records: one unreadable, one refused for its licence, one too short, three documents, of which one leaves."""
    funnel = Funnel("papers").add(None, (), dropped("raw/x#1", "parse"))
    funnel = funnel.add(draft(2, "Not allowed."), (), dropped("id:2", "licence"))
    parts = [
        counted(draft(3, "é", Span("authors", 0, 0)), "too_short"),
        counted(draft(4, "Known [1] \u00e0 http://a.org/b.", Span("citation", 7, 8))),
        counted(draft(5, "Two  spaces.")),
        counted(draft(6, "A copy.")),
    ]
    return reduce(Funnel.merge, parts, funnel).leave(dropped("id:6", "duplicate"), "A copy.")


def test_every_count_is_where_it_belongs() -> None:
    funnel = example()
    assert (funnel.records, funnel.drafts, funnel.documents) == (6, 5, 2)
    assert {name: (stage.touched, stage.dropped, stage.chars, stage.bytes) for name, stage in funnel.stages.items()} == {
        "parse": (1, 1, 0, 0),
        "licence": (1, 1, 12, 12),
        "too_short": (1, 1, 1, 2),
        "citation_mentions": (1, 0, 4, 4),
        "urls": (1, 0, 15, 15),
        "clean": (1, 0, 1, 1),
        "duplicate": (1, 1, 7, 7),
    }
    assert funnel.chars == len("Known à.") + len("Two spaces.") and funnel.bytes == funnel.chars + 1


def test_the_documents_before_a_stage_are_what_the_ones_before_left() -> None:
    before = {row.name: row.documents_before for row in rows(example(), frozenset({"toc"}), CHECKS)}
    assert list(before) == ["parse", "retracted", "licence", *(name for name in STEPS if name != "toc"), "clean", "too_short", "duplicate"]  # fmt: skip
    assert (before["parse"], before["retracted"], before["licence"], before["authors"]) == (6, 5, 5, 4)
    assert (before["clean"], before["too_short"], before["duplicate"]) == (4, 4, 3)


def test_add_leaves_the_funnel_it_was_called_on_as_it_was() -> None:
    funnel = example()
    copy = json.dumps(funnel.to_json())
    funnel.add(None, (), dropped("raw/x#9", "parse"))
    funnel.merge(funnel)
    funnel.leave(dropped("id:5", "duplicate"), "Two spaces.")
    assert json.dumps(funnel.to_json()) == copy


TEXTS = st.text(st.sampled_from("ab é.()[]\n1 \u00ad"), max_size=30)
ROWS = st.tuples(st.integers(0, 40), TEXTS, st.sampled_from(["", "", "licence", "too_short", "quality"]), st.integers(0, 30))


@settings(max_examples=80, deadline=None)
@given(st.lists(ROWS, max_size=14), st.integers(0, 14), st.integers(0, 14), st.randoms(use_true_random=False))
def test_merging_is_associative_and_commutative(
    rows: list[tuple[int, str, str, int]], one: int, other: int, draw: object
) -> None:
    def total(some: list[tuple[int, str, str, int]]) -> Funnel:
        parts = [counted(draft(number, text, Span("figure", 0, min(end, len(text)))), check) for number, text, check, end in some]
        return reduce(Funnel.merge, parts, Funnel("papers"))

    low, high = sorted((one, other))
    first, second, third = (total(part) for part in (rows[:low], rows[low:high], rows[high:]))
    whole = total(rows)
    assert first.merge(second).merge(third) == first.merge(second.merge(third)) == whole
    assert third.merge(first).merge(second) == second.merge(first).merge(third) == whole
    shuffled = list(rows)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    assert total(shuffled) == whole
    assert whole.draft_chars == whole.chars + sum(stage.chars for stage in whole.stages.values())
    assert whole.draft_bytes == whole.bytes + sum(stage.bytes for stage in whole.stages.values())
    assert whole.records == whole.documents + sum(stage.dropped for stage in whole.stages.values())
    assert Funnel.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_samples_are_few_and_a_fair_draw() -> None:
    numbers = list(range(400))
    parts = [
        counted(draft(number, f"Text {number}.\n\nFigure.", Span("figure", len(f"Text {number}.") + 2, 99))) for number in numbers
    ]
    forwards, backwards = (reduce(Funnel.merge, some, Funnel("papers")) for some in (parts, parts[::-1]))
    samples = forwards.stages["figures"].samples
    assert samples == backwards.stages["figures"].samples and len(samples) == SAMPLES
    drawn = [int(sample.id.removeprefix("id:")) for sample in samples]
    assert len(set(drawn)) == SAMPLES and max(drawn) > 100


def test_the_table_has_a_row_a_stage_and_exactly_its_schema() -> None:
    found = table(example(), frozenset({"toc"}), CHECKS)
    assert found.schema == FUNNEL_SCHEMA
    by_name = {row["stage"]: row for row in found.to_pylist()}
    assert by_name["urls"]["bytes_removed"] == 15 and by_name["urls"]["kind"] == "step"
    assert by_name["urls"]["samples"] == [{"id": "id:4", "text": "http://a.org/b"}]
    assert by_name["licence"]["kind"] == "check" and by_name["parse"]["kind"] == "reader" and "toc" not in by_name
    assert all(row["about"] for row in by_name.values())


@pytest.mark.parametrize("funnel", [Funnel("papers"), example()])
def test_the_page_fetches_nothing_and_shows_every_stage(funnel: Funnel) -> None:
    html = page(funnel, frozenset({"toc"}), CHECKS)
    tree = lxml.html.fromstring(html)
    assert not tree.xpath("//script | //link | //img | //*[@src] | //*[@href]") and "url(" not in html and "@import" not in html
    cells = {
        row.xpath("string(th/text()[1])").strip(): [cell.text_content() for cell in row.xpath("td")]
        for row in tree.xpath("//tbody/tr")
    }
    assert set(cells) == {row.name for row in rows(funnel, frozenset({"toc"}), CHECKS)} | {"documents"}
    if funnel.records:
        assert cells["urls"][:5] == ["4", "1", "0", "15", "15"] and cells["documents"][0] == "2"
    assert re.search(r"Switched off by the recipe: toc", html)
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_what_comes_from_texts_is_escaped_and_the_same_funnel_gives_the_same_page() -> None:
    funnel = Funnel("papers").add(None, (), dropped("<b>", "parse", "<script>alert(1)</script>"))
    html = page(funnel)
    assert "<script>" not in html and "&lt;script&gt;" in html and "<b>" not in html
    assert html == page(Funnel.from_json(funnel.to_json()))

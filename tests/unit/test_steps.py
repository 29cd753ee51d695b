"""The corpus steps on marked and on plain text, and the cuts under them against a slow oracle. All texts here are invented."""

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.corpus.marked import MarkedText, apart_from, cut, sections, settled, without
from medschool.corpus.steps import KINDS, STEPS, check_off, run_steps
from medschool.errors import RecipeError, StageError
from medschool.rows import Draft, Span


def draft(text: str, *spans: Span) -> Draft:
    return Draft("id:1", "papers", text, "A title", "cc-by", 2020, "article", "raw/x", tuple(spans))


def marked(text: str) -> Draft:
    """A draft from `one <citation:2> three`: marks do not nest, and may hold what is in one bracket of a kind only."""
    out, spans = "", []
    for plain, kind, inside in re.findall(r"([^<]+)|<(\w+):([^>]*)>", text):
        if kind:
            spans.append(Span(kind, len(out), len(out) + len(inside)))
        out += plain or inside
    return draft(out, *spans)


def left(text: str, *off: str) -> str:
    return run_steps(marked(text), frozenset(off))[0].text


# ---- what each step takes -----------------------------------------------------------------------------------------------------

EXAMPLES = {
    "authors": ("T\n\n<authors:A. Roe, B. Doe>\n\n<affiliations:Ward 1>\n\nText.", "T\n\nText."),
    "front_matter": ("<front_matter:The Press, 2020>\n\nText.", "Text."),
    "back_matter": ("Text.\n\n## Competing Interests:\n\nNone.\n\n<back_matter:A file>", "Text."),
    "acknowledgements": ("Text.\n\n## 6. Acknowledgments\n\nWe thank B.", "Text."),
    "references": (
        "Text.\n\n## References\n\n<references:1. Roe>\n\n2. Doe\n\n## Appendix\n\nMore.",
        "Text.\n\n## Appendix\n\nMore.",
    ),
    "toc": ("## Contents\n\nOne 1\n\nTwo 2\n\n## One\n\nText.", "## One\n\nText."),
    "running_heads": ("of the\n<running_head:12 The Heart>\nleft side", "of the\nleft side"),
    "figures": ("Text.\n\n<figure:Figure 1\n\nThe heart.>\n\nMore.", "Text.\n\nMore."),
    "tables": ("Text.\n\n<table:Table 1\na | b\n1 | 2>", "Text."),
    "formulas": ("Where <formula:x = 1>, and <formula:y>.", "Where, and."),
    "citation_mentions": ("Known [<citation:1>,<citation:2>]. Shown (<citation:Roe 2003>).", "Known. Shown."),
    "figure_mentions": ("It rose (see <figure_mention:Fig. 1>A).", "It rose."),
    "table_mentions": ("It rose (<table_mention:Table 2>).", "It rose."),
    "footnotes": ("The dose<footnote_mark:a> rose.\n\n<footnote:a In mg.>", "The dose rose."),
    "urls": ("Data (https://example.org/a?b=1) are open.", "Data are open."),
    "copyright": ("Text.\n\n<copyright:A claim.>\n\n© 2020 The Press.", "Text."),
}


def test_every_step_has_an_example() -> None:
    assert list(EXAMPLES) == list(STEPS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_step_takes_its_part_and_says_so(name: str) -> None:
    before, after = EXAMPLES[name]
    row = marked(before)
    better, removed = run_steps(row)
    assert better.text == after
    assert [what.step for what in removed] == [name]
    assert removed[0].chars == len(row.text) - len(after)
    assert removed[0].bytes == len(row.text.encode()) - len(after.encode())
    assert removed[0].sample and len(removed[0].sample) <= 200


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_step_that_is_off_takes_nothing(name: str) -> None:
    row = marked(EXAMPLES[name][0])
    assert run_steps(row, frozenset({name})) == (row, [])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_step_finds_nothing_where_it_has_been(name: str) -> None:
    better, _ = run_steps(marked(EXAMPLES[name][0]))
    assert run_steps(better) == (better, [])


def test_a_draft_with_nothing_to_remove_is_the_same_draft() -> None:
    row = draft("Plain words (n = 5) [sic].\n\n## Methods\n\nMore words.")
    better, removed = run_steps(row)
    assert better is row and removed == []


def test_what_is_inside_another_part_is_counted_once() -> None:
    text = "Text.\n\nFigure 1 as in [3]."
    row = draft(text, Span("figure", 7, len(text)), Span("citation", text.index("3"), text.index("3") + 1))
    better, removed = run_steps(row)
    assert better.text == "Text." and [what.step for what in removed] == ["figures"]
    kept, removed = run_steps(row, frozenset({"figures"}))
    assert kept.text == "Text.\n\nFigure 1 as in." and [what.step for what in removed] == ["citation_mentions"]


def test_the_sample_is_the_first_200_characters_of_what_went() -> None:
    _, (what,) = run_steps(marked(f"Text.\n\n<references:{'word ' * 100}>\n\nMore.\n\n<references:Last>"))
    assert what.sample == ("word " * 40)


def test_an_unknown_name_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(RecipeError) as error:
        run_steps(draft("Text."), frozenset({"url"}))
    assert "'url'" in error.value.problem and all(name in error.value.remedy for name in STEPS)
    check_off(STEPS)


def test_a_span_that_no_step_knows_is_an_error() -> None:
    with pytest.raises(StageError, match="'colophon'"):
        run_steps(draft("Text.", Span("colophon", 0, 4)))
    assert set(KINDS.values()) <= set(STEPS)


# ---- mentions -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Known [<citation:1>\u2013<citation:4>] well.", "Known well."),
        ("Known<citation:1>,<citation:2>.", "Known."),
        ("Known (see [<citation:1>]).", "Known."),
        ("Rose (p = 0.1; [<citation:1>]).", "Rose (p = 0.1)."),
        ("Rose (<citation:1>; p = 0.1).", "Rose (p = 0.1)."),
        ("Rose (by 5%; see <citation:Roe 2001>).", "Rose (by 5%)."),
        ("<citation:Roe et al. (2004)> found it.", "Roe et al. (2004) found it."),
        ("Roe <citation:[1]> and <citation:(Doe 2003)> it is.", "Roe and it is."),
        ("Known <citation:(Smith, 2003;> <citation:Brown, 2005;> <citation:Jones, 2004)>.", "Known."),
        ("Known <citation:[4,> <citation:5]>.", "Known."),
        ("Rose (<figure_mention:Fig. 1>; <citation:2>).", "Rose."),
        ("Rose (<figure_mention:Fig. 1> and <table_mention:Table 2>).", "Rose."),
        ("<figure_mention:Fig. 1> shows (<figure_mention:Fig. 2>) it.", "Fig. 1 shows it."),
        ("Rose (<table_mention:Table 2>; p = 0.1).", "Rose (<table_mention:Table 2>; p = 0.1)."),
        ("The dose<footnote_mark:*> rose.", "The dose rose."),
        ("A file has \ue000 and \uf8ff [<citation:1>].", "A file has \ue000 and \uf8ff."),
    ],
)
def test_mentions_leave_with_their_brackets(before: str, after: str) -> None:
    assert left(before) == marked(after).text


def test_a_kind_that_is_off_keeps_its_mention_in_a_shared_bracket() -> None:
    text = "Rose (see <figure_mention:Fig. 1>, <table_mention:Table 2>)."
    assert left(text, "table_mentions") == "Rose (see Table 2)."
    assert left(text, "figure_mentions") == "Rose (see Fig. 1)."
    long = (
        f"Rose (<table_mention:Table 2>, <figure_mention:Figure {'of the second part ' * 20}>; <figure_mention:{'Fig ' * 40}>)."
    )
    assert left(long, "table_mentions") == "Rose (Table 2)."
    assert left("Rose (<figure_mention:Fig. 1>; <citation:2>).", "citation_mentions") == "Rose (2)."


# ---- plain text ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("It was shown [12]. And more [1, 2-5].", "It was shown. And more."),
        ("Shown.[3] Then", "Shown. Then"),
        ("Shown by Roe et al. [7] again", "Shown by Roe et al. again"),
        ("It rose (Fig. 1). Then (see Figures 2A and 3) fell (Tables 1-3).", "It rose. Then fell."),
        ("see www.example.org/data, and ftp://example.org/x.", "see, and."),
        ("(WHO; http://example.org/tb/), a disease", "(WHO), a disease"),
        ("Text.\n\n(c) 2020 The Press. All rights reserved.\n\nMore.", "Text.\n\nMore."),
    ],
)
def test_plain_text_loses_what_is_certain(before: str, after: str) -> None:
    assert run_steps(draft(before))[0].text == after


@pytest.mark.parametrize(
    "text",
    [
        "aged 35 years [13-60] or [79-98]",
        "the 95% CI [2, 5] and the range [1, 9]",
        "x in [1, 2, 3]; return [1, 2]; a[1] = b[2]",
        "[1] opens a line",
        "the 4 mg dose [2, 7] was",
        "fluoro [18]F and spiro[4,5]decane",
        "groups [5, 3, 9] and [0, 1]",
        "Table 2 shows it (Table 2; p = 0.1) as Fig. 1 does (Fig. 1, left)",
        "(a) figure of speech (in 12 tables)",
        "Copyright law matters. The score© 2020 too.",
        "references to the contents of the funding",
        "www is not an address, nor is http:// alone",
    ],
)
def test_plain_text_keeps_what_only_looks_like_it(text: str) -> None:
    assert run_steps(draft(text)) == (draft(text), [])


def test_where_citations_are_marked_no_other_bracket_is_one() -> None:
    assert left("Shown [<citation:1>] that words [2] stay.") == "Shown that words [2] stay."


# ---- headings -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("## A\n\n<figure:F>\n\n## B\n\nText.", "## B\n\nText."),
        ("## A\n\n### A1\n\n<figure:F>\n\n### A2\n\n<table:T>\n\n## B\n\nText.", "## B\n\nText."),
        ("## A\n\n<figure:F>\n\n### A1\n\nText.", "## A\n\n### A1\n\nText."),
        ("Text.\n\n## A\n\n<figure:F>", "Text."),
        ("## Empty before\n\n## B\n\n<figure:F>\n\nText.", "## Empty before\n\n## B\n\nText."),
        ("- One\n\n- <formula:x>\n\n- Two", "- One\n\n- Two"),
        ("## <formula:x>\n\nText.", "Text."),
        ("<figure:F>", ""),
    ],
)
def test_a_heading_goes_with_the_last_of_its_text(before: str, after: str) -> None:
    assert left(before) == after


def test_sections_end_at_the_next_heading_of_their_level_or_above() -> None:
    text = "T\n\n## A\n\na\n\n### A1\n\nb\n\n## B\n\nc"
    assert [(title, text[start:end]) for title, (start, end) in sections(text)] == [
        ("A", "## A\n\na\n\n### A1\n\nb"),
        ("A1", "### A1\n\nb"),
        ("B", "## B\n\nc"),
    ]


# ---- cuts against an oracle ---------------------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("ab .,;()[]#-\n1é"), max_size=60)
PLACES = st.tuples(st.integers(-2, 62), st.integers(-2, 62))


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(PLACES, max_size=6), st.lists(PLACES, max_size=6))
def test_spans_stay_on_their_characters(text: str, holes: list[tuple[int, int]], places: list[tuple[int, int]]) -> None:
    spans = [Span("figure", start, end) for start, end in places if 0 <= start < end <= len(text)]
    better, pieces = without(draft(text, *spans), holes)
    goes = [any(start <= place < end for start, end in settled(text, holes)) for place in range(len(text))]
    kept = [place for place in range(len(text)) if not goes[place]]
    assert better.text == "".join(text[place] for place in kept) == cut(text, holes)
    assert "".join(pieces) == "".join(letter for letter, gone in zip(text, goes, strict=True) if gone)
    expected = []
    for span in spans:
        inside = [kept.index(place) for place in kept if span.start <= place < span.end]
        if inside:
            expected.append(Span(span.kind, inside[0], inside[-1] + 1))
    assert list(better.spans) == expected


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(PLACES, max_size=6))
def test_holes_only_grow_and_are_apart_and_settled(text: str, holes: list[tuple[int, int]]) -> None:
    found = settled(text, holes)
    wanted = {place for start, end in holes for place in range(max(start, 0), min(end, len(text)))}
    assert wanted <= {place for start, end in found for place in range(start, end)}
    assert all(one[1] < other[0] for one, other in pairwise(found))
    assert settled(text, found) == found
    assert bool(found) == bool(wanted)


@settings(max_examples=200, deadline=None)
@given(st.lists(PLACES, max_size=6), st.lists(PLACES, max_size=6))
def test_holes_apart_from_others_share_no_character_with_them(
    holes: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    holes = [hole for hole in holes if hole[0] < hole[1]]
    taken = {place for start, end in others for place in range(start, end)}
    assert list(apart_from(holes, others)) == [hole for hole in holes if not taken & set(range(*hole))]


KIND = st.sampled_from(sorted(KINDS))


@settings(max_examples=200, deadline=None)
@given(
    TEXTS, st.lists(st.tuples(KIND, st.integers(0, 60), st.integers(0, 60)), max_size=8), st.sets(st.sampled_from(list(STEPS)))
)
def test_what_steps_say_they_took_is_what_is_missing(text: str, marks: list[tuple[str, int, int]], off: set[str]) -> None:
    spans = [Span(kind, start, end) for kind, start, end in marks if start < end <= len(text)]
    better, removed = run_steps(draft(text, *spans), frozenset(off))
    assert len(text) == len(better.text) + sum(what.chars for what in removed)
    assert len(text.encode()) == len(better.text.encode()) + sum(what.bytes for what in removed)
    assert not Counter(better.text) - Counter(text)
    letters = iter(text)
    assert all(letter in letters for letter in better.text), "what is left is in its old order"
    assert not off & {what.step for what in removed}


# ---- writing ------------------------------------------------------------------------------------------------------------------


def test_marked_text_is_written_without_traces_of_what_was_empty() -> None:
    out = MarkedText()
    out.begin("## ")
    out.write(" The \n title ")
    with out.block("figure"):
        out.begin("- ")
        out.begin("- ")
        out.write("one ")
        with out.inline("citation"):
            out.write(" 1 ")
        with out.inline("formula"):
            out.write("  ")
        out.write(", two")
        out.begin("- ")
    with out.block("table"):
        out.begin()
    out.begin(gap="\n")
    out.write("end")
    text, spans = out.end()
    assert text == "## The title\n\n- one 1 , two\nend"
    assert [(span.kind, text[span.start : span.end]) for span in spans] == [("citation", "1"), ("figure", "- one 1 , two")]

"""What is taken out of every document: the paper's list, one named step at a time.

    Draft --authors--front_matter--back_matter-- ... --urls--copyright--> Draft, and what each step removed

A step deletes and does nothing else: parts that the reader marked with a span of its kinds, sections under a heading that says
what they are, and, for text that came without marks, patterns that are narrow on purpose (corpus.unmarked). Each can be switched
off by its name in the recipe (`clean.off`). The order is fixed, so that a part inside another is counted once, by the step that
took it first: a citation in a caption goes with the caption.

The list is that of PMC-LLaMA (Wu et al. 2023, section 4.1): URLs, author lists, superfluous information, document contents,
references and citations, mentions of figures and tables.

Price: about 20 MB of text a second and core for plain text, 10 MB for full texts with hundreds of marks.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from medschool.corpus import unmarked
from medschool.corpus.marked import Hole, apart_from, sections, without
from medschool.corpus.mentions import CITATION, FIGURE_MENTION, FOOTNOTE_MARK, MENTIONS, TABLE_MENTION, mention_holes
from medschool.corpus.unmarked import Search
from medschool.errors import RecipeError, StageError
from medschool.rows import Draft

SAMPLE_CHARS = 200


@dataclass(frozen=True)
class Removed:
    """What one step took out of one document. There is none where it took nothing."""

    step: str
    chars: int
    bytes: int
    """In UTF-8."""
    sample: str
    """The first 200 characters of what went, its pieces apart by a space."""


@dataclass(frozen=True)
class Step:
    """One thing that is taken out."""

    name: str
    about: str
    """What goes, in a few words for people."""
    kinds: frozenset[str]
    """Kinds of spans that say where it is."""
    find: Callable[[Draft], Iterable[Hole]]
    """Where it stands in a draft."""

    def apply(self, draft: Draft) -> tuple[Draft, Removed | None]:
        """The draft without it; the same draft and None where there is nothing to remove."""
        better, pieces = without(draft, self.find(draft))
        if not pieces:
            return draft, None
        size = sum(len(piece.encode(errors="surrogatepass")) for piece in pieces)
        sample = " ".join(" ".join(pieces).split())[:SAMPLE_CHARS]
        return better, Removed(self.name, sum(map(len, pieces)), size, sample)


def run_steps(draft: Draft, off: frozenset[str] = frozenset()) -> tuple[Draft, list[Removed]]:
    """The draft after every step that is not in `off`, in the order of STEPS, and what each took, in that order.

    Raises RecipeError for a name in `off` that is no step, StageError for a span of a kind that no step knows.
    """
    check_off(off)
    if strange := {span.kind for span in draft.spans} - KINDS.keys():
        problem = f"the reader marked a {min(strange)!r}, which no corpus step removes"
        raise StageError(problem, f"mark it as one of {', '.join(sorted(KINDS))}", f"{draft.uri}: {draft.id}")
    removed = []
    for step in STEPS.values():
        if step.name not in off:
            draft, what = step.apply(draft)
            removed += [what] if what else []
    return draft, removed


def check_off(off: Iterable[str]) -> None:
    """Raises RecipeError, naming the steps there are, for a name in `off` that is none of them."""
    if unknown := sorted(set(off) - STEPS.keys()):
        raise RecipeError(f"there is no step {unknown[0]!r}", f"use names among {', '.join(STEPS)}", "clean.off")


# ---- how a step finds what it removes -----------------------------------------------------------------------------------------

_NUMBERING = re.compile(r"^(?:\d+(?:\.\d+)*\.?|[IVX]+\.)\s+")
_MARKUP = re.compile(r"^[*_]+|[*_:.]+$")


@dataclass(frozen=True)
class _Find:
    """Finds whole spans, sections under a heading, mentions inside sentences, and what a search finds in the bare text."""

    parts: frozenset[str] = frozenset()
    """Kinds of spans that go as they are."""
    mention: str = ""
    """Kind of span that is a mention in a sentence."""
    headings: frozenset[str] = frozenset()
    """In lower case, without numbering."""
    search: Search | None = None
    """For mentions: a place with the mark of any mention in it is no find, the reader has judged it."""
    unmarked_only: bool = False
    """The search is for texts without marks of the kind: where the reader marked them, what looks like one is none."""

    def __call__(self, draft: Draft) -> Iterator[Hole]:
        yield from ((span.start, span.end) for span in draft.spans if span.kind in self.parts)
        if self.mention:
            yield from mention_holes(draft, self.mention)
        if self.headings and "#" in draft.text:
            yield from (place for title, place in sections(draft.text) if _heading(title) in self.headings)
        marked = self.unmarked_only and any(span.kind == self.mention for span in draft.spans)
        if self.search and not marked:
            marks = [(span.start, span.end) for span in draft.spans if self.mention and span.kind in MENTIONS]
            yield from apart_from(self.search(draft.text), marks)


def _heading(title: str) -> str:
    """`REFERENCES.` and `7. References` as `references`."""
    return _MARKUP.sub("", _NUMBERING.sub("", title)).lower().replace("\u2019", "'").strip()


_ACKNOWLEDGEMENTS = {"acknowledgements", "acknowledgments", "acknowledgement", "acknowledgment"}
_REFERENCES = {"references", "bibliography", "literature cited", "works cited", "reference list", "references and notes"}
_BACK_MATTER = {
    "authors' contributions", "author's contributions", "author contributions", "authors contributions", "contributors",
    "competing interests", "competing interest", "conflict of interest", "conflicts of interest", "conflict of interests",
    "declaration of competing interest", "declaration of interests", "disclosure", "disclosures",
    "funding", "funding sources", "financial support", "pre-publication history", "supporting information",
    "supplementary material", "supplementary materials", "supplementary information", "supplementary data",
    "data availability", "data availability statement", "availability of data and materials",
}  # fmt: skip


def _step(
    name: str,
    about: str,
    *parts: str,
    mention: str = "",
    headings: Iterable[str] = (),
    search: Search | None = None,
    unmarked_only: bool = False,
) -> Step:
    kinds = frozenset(parts)
    return Step(name, about, kinds | {mention} - {""}, _Find(kinds, mention, frozenset(headings), search, unmarked_only))


_ALL = (
    _step("authors", "author lists and affiliations", "authors", "affiliations"),
    _step("front_matter", "title pages, publishers, journal, keywords", "front_matter"),
    _step("back_matter", "contributions, interests, funding, supporting files, appendices", "back_matter", headings=_BACK_MATTER),
    _step("acknowledgements", "thanks", "acknowledgements", headings=_ACKNOWLEDGEMENTS),
    _step("references", "bibliographies", "references", headings=_REFERENCES),
    _step("toc", "tables of contents", "toc", headings={"contents", "table of contents"}),
    _step("running_heads", "lines that stand on every page, page numbers", "running_head"),
    _step("figures", "figures with their captions", "figure", "figure_caption"),
    _step("tables", "tables with their captions", "table"),
    _step("formulas", "formulas", "formula"),
    _step("citation_mentions", "[1, 2] and (Smith 2003)", mention=CITATION, search=unmarked.citations, unmarked_only=True),
    _step("figure_mentions", "(see Fig. 1A), (Additional file 2)", mention=FIGURE_MENTION, search=unmarked.figures),
    _step("table_mentions", "(Table 2)", mention=TABLE_MENTION, search=unmarked.tables),
    _step("footnotes", "footnotes and their marks", "footnote", mention=FOOTNOTE_MARK, headings={"footnotes", "endnotes"}),
    _step("urls", "addresses on the web", search=unmarked.urls),
    _step("copyright", "claims of copyright", "copyright", search=unmarked.copyright_lines),
)
STEPS: dict[str, Step] = {step.name: step for step in _ALL}
"""Name -> step, in the order in which they run."""
KINDS: dict[str, str] = {kind: step.name for step in _ALL for kind in sorted(step.kinds)}
"""Kind of a span -> name of the step that removes it."""

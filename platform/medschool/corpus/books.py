"""Reference books: the Human Phenotype Ontology and the ICD-10-CM tabular list become short readable entries.

Both are databases in their files. A language model learns from sentences, so each entry is written out: what a thing is, what
else it is called, what it is a kind of; for a diagnosis, which codes it divides into and what belongs elsewhere. Nothing is added
that the file does not say. A reader holds one file's terms in memory (20,000 terms, 10 MB).

Price: 0.4 s for the whole of the ontology, 1 s for the whole of the tabular list.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from lxml import etree

from medschool.corpus.spool import whole
from medschool.corpus.xml import elements
from medschool.errors import InputError
from medschool.rows import Draft, Dropped

SAMPLE_CHARS = 200

# ---- Human Phenotype Ontology (OBO 1.2) ---------------------------------------------------------------------------------------

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(.*)')
_CUT_SHORT = "fetch the file again: it may be cut short"
_ESCAPES = {"n": " ", "t": " ", "W": " "}


@dataclass
class Term:
    """One stanza of an OBO file: its tags in file order, the line it starts at, and its kind, such as [Term] or [Typedef]."""

    line: int
    tags: dict[str, list[str]] = field(default_factory=dict)
    kind: str = "[Term]"

    def first(self, tag: str) -> str:
        return self.tags.get(tag, [""])[0]


def hpo(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a term of an HPO release in OBO format. Dropped: obsolete terms, terms without id, name or definition.

    Raises InputError when the file is not UTF-8 or not an OBO file with terms, or end inside a term's tag.
    """
    found = list(terms(whole(stream, uri), uri))
    names = {term.first("id"): term.first("name") for term in found}
    for term in found:
        yield _hpo_row(term, names, uri, source)


def terms(data: bytes, uri: str) -> Iterator[Term]:
    """Every [Term] in the order of the file. Raises as `hpo` does."""
    yield from (stanza for stanza in stanzas(data, uri) if stanza.kind == "[Term]")


def stanzas(data: bytes, uri: str) -> Iterator[Term]:
    """Every stanza in the order of the file, of whatever kind. Raises as `hpo` does."""
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("not UTF-8 text", "fetch the file again", f"{uri}:{line}") from error
    if not lines or not lines[0].lstrip("\ufeff").startswith("format-version:"):
        raise InputError("not an OBO file: no `format-version:` in its first line", "check this source's `format`", f"{uri}:1")
    stanza: Term | None = None
    found = False
    for number, text in enumerate(lines, start=1):
        if text.startswith("["):
            if stanza:
                yield stanza
            stanza = Term(number, kind=text.strip())
            found = found or stanza.kind == "[Term]"
        elif stanza and text.strip():
            tag, colon, value = text.partition(": ")
            if not colon:
                raise InputError(f"cannot read {text[:60]!r} as `tag: value`", _CUT_SHORT, f"{uri}:{number}")
            stanza.tags.setdefault(tag, []).append(value)
    if stanza:
        yield stanza
    if not found:
        raise InputError("holds no [Term]", _CUT_SHORT, f"{uri}:{len(lines)}")


def _hpo_row(term: Term, names: dict[str, str], uri: str, source: str) -> Draft | Dropped:
    term_id, name = term.first("id"), term.first("name")
    meaning = definition(term)
    for dropped, step, reason in (
        (not term_id or not name, "parse", f"[Term] at line {term.line} without id or name"),
        (term.first("is_obsolete") == "true", "obsolete", "the term is obsolete"),
        (not meaning, "parse", "no definition"),
    ):
        if dropped:
            return Dropped(term_id or f"{uri}#{term.line}", source, step, reason, (name or meaning)[:SAMPLE_CHARS], uri)
    text = f"{name}\n\n{sentence(meaning)}{_synonyms(term, name)}{_kind_of(name, parents(term, names))}"
    return Draft(term_id, source, text, name, "hpo", None, "definition", uri)


def _synonyms(term: Term, name: str) -> str:
    """` Also called A, B and C. In plain words: D.`"""
    formal, plain = synonyms(term, name)
    words = f" Also called {listed(formal)}." if formal else ""
    return words + (f" In plain words: {listed(plain)}." if plain else "")


def synonyms(term: Term, name: str) -> tuple[list[str], list[str]]:
    """Exact synonyms, without those that were discarded: those of doctors, and those in plain words."""
    formal: list[str] = []
    plain: list[str] = []
    for value in term.tags.get("synonym", []):
        quoted = _QUOTED.match(value)
        scope = quoted[2].split("[")[0].split() if quoted else []
        if quoted and "EXACT" in scope and "obsolete_synonym" not in scope and quoted[1].lower() != name.lower():
            (plain if "layperson" in scope else formal).append(_unescape(quoted[1]))
    return formal, plain


def definition(term: Term) -> str:
    """What the term means; empty where the file does not say."""
    quoted = _QUOTED.match(term.first("def"))
    return _unescape(quoted[1]) if quoted else ""


def parents(term: Term, names: dict[str, str]) -> list[str]:
    """What the term is a kind of, by name, without the root that all terms share. names: name of each term id."""
    ids = [value.split()[0] for value in term.tags.get("is_a", []) if value.strip()]
    return [names[parent] for parent in ids if names.get(parent, "All") != "All"]


def _kind_of(name: str, kinds: list[str]) -> str:
    return f"\n\n{name} is a kind of {listed(kinds)}." if kinds else ""


def _unescape(text: str) -> str:
    return " ".join(re.sub(r"\\(.)", lambda mark: _ESCAPES.get(mark[1], mark[1]), text).split())


def listed(words: list[str]) -> str:
    """`A`, `A and B`, `A, B and C`; each word once."""
    words = list(dict.fromkeys(words))
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def sentence(text: str) -> str:
    """`text` with a full stop at its end, where it has no end yet."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


# ---- ICD-10-CM tabular list ---------------------------------------------------------------------------------------------------

_NOTES = {
    "inclusionTerm": "Includes",
    "includes": "Includes",
    "notes": "Note",
    "codeFirst": "Code first",
    "codeAlso": "Code also",
    "useAdditionalCode": "Use additional",
    "excludes1": "Never coded together with it",
    "excludes2": "Coded elsewhere",
    "sevenChrNote": "Seventh character",
}


def icd10cm(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a three-character category with the codes under it. Dropped: a category without code or description."""
    position = 0
    for section in elements(stream, uri, "section"):
        part = [f"Part of: {words}."] if (words := words_of(section, "desc")) else []
        for category in section.iterfind("diag"):
            position += 1
            code, title = words_of(category, "name"), words_of(category, "desc")
            if not code or not title:
                yield Dropped(f"{uri}#{position}", source, "parse", "<diag> without name or desc", f"{code} {title}".strip(), uri)
                continue
            lines = [f"{title} (ICD-10-CM {code})", *part, *_diagnosis(category, _notes(category))]
            yield Draft(f"icd10cm:{code}", source, "\n\n".join(lines), title, "public-domain", None, "classification", uri)


def _diagnosis(node: etree._Element, notes: str) -> Iterator[str]:
    """Paragraphs: the node's own notes, then each code under it with its notes, depth first."""
    if notes:
        yield notes
    for child in node.iterfind("diag"):
        yield f"{words_of(child, 'name')} {sentence(words_of(child, 'desc'))} {_notes(child)}".rstrip()
        yield from _diagnosis(child, "")


def _notes(node: etree._Element) -> str:
    """The notes of one code as sentences, `Includes: cholera; epidemic cholera.`, and the meaning of its seventh characters."""
    sentences = []
    for child in node:
        label = _NOTES.get(child.tag) if isinstance(child.tag, str) else None
        notes = [words for note in child.iterfind("note") if (words := " ".join("".join(note.itertext()).split()))]
        if label and notes:
            sentences.append(sentence(f"{label}: {'; '.join(notes)}".replace(":; ", ": ")))
        if child.tag == "sevenChrDef":
            meanings = [f"{item.get('char')} {' '.join((item.text or '').split())}" for item in child.iterfind("extension")]
            sentences.append(sentence(f"Seventh characters: {'; '.join(meanings)}"))
    return " ".join(sentences)


def words_of(node: etree._Element, tag: str) -> str:
    """Text of the first child `tag` on one line; empty where there is none."""
    return " ".join((node.findtext(tag) or "").split())

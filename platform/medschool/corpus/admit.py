"""What a source asks of a document, check after check, on one draft.

    draft --retracted? licence?--> steps take things out --> clean --> too short? language? quality? identifiers? --> document

The cheap checks that need no text come first: of a collection of full texts half may have a licence that nobody asked for. The
others see the text as it will be trained on. The first check that refuses names itself in Dropped.step, with the value that
decided; CHECKS lists them in their order. `duplicate` is decided later, over all documents of the source (corpus.parts).

What has no text to judge was never a draft: a reader yields it as Dropped, with the step `malformed` where it is broken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from medschool import storage
from medschool.corpus.clean import SAMPLE_CHARS, Rules, clean
from medschool.corpus.deidentify import judge, scan, tally
from medschool.corpus.language import other_language
from medschool.corpus.licences import allowed
from medschool.corpus.quality import poor_quality
from medschool.corpus.retracted import is_retracted, retracted_ids
from medschool.corpus.steps import Removed, run_steps
from medschool.recipe import Recipe
from medschool.recipe.corpus import Identifiers
from medschool.rows import Document, Draft, Dropped

CHECKS = ("retracted", "licence", "too_short", "language", "quality", "identifiers", "duplicate")
QUARANTINE = frozenset({"malformed", "identifiers", "unreadable"})
"""Steps whose rows go to quarantine/: a person should look at them. What is left out on purpose goes to dropped/."""


@dataclass(frozen=True)
class Terms:
    """The terms on which a source takes documents; plain data, which travels to every worker."""

    rules: Rules
    off: frozenset[str]
    """Steps of corpus.steps that are left out."""
    retracted: frozenset[str]
    languages: frozenset[str] | None
    quality: tuple[str, ...]
    identifiers: Identifiers | None


@dataclass(frozen=True)
class Judged:
    """What became of one draft."""

    row: Document | Dropped
    removed: tuple[Removed, ...] = ()
    """What each step took out of it."""
    found: Mapping[str, int] = field(default_factory=dict)
    """Identifiers of people in it, by class; also of a document that was taken."""


def terms_of(recipe: Recipe, source: str, store_uri: str) -> Terms:
    """What the recipe asks of `source`. Reads the list of retracted ids; raises InputError where it is missing or none."""
    spec, asked = recipe.sources[source], recipe.clean
    return Terms(
        rules=Rules(asked.min_chars, allowed(spec.licences)),
        off=frozenset(asked.off),
        retracted=retracted_ids(storage.join(store_uri, spec.retracted), spec.retracted) if spec.retracted else frozenset(),
        languages=None if asked.languages is None else frozenset(asked.languages),
        quality=asked.quality,
        identifiers=asked.identifiers,
    )


def admit(draft: Draft, terms: Terms, retrieved: date | None) -> Judged:
    """One draft through the steps and all checks, up to the first that refuses it."""
    if draft.retracted or is_retracted(draft.id, terms.retracted):
        said = "its file says so" if draft.retracted else "it is on the list of retracted ids"
        return Judged(_dropped(draft, "retracted", f"the publication was retracted: {said}"))
    if draft.licence not in terms.rules.licences:
        wanted = ", ".join(sorted(terms.rules.licences)) or "none"
        return Judged(_dropped(draft, "licence", f"licence {draft.licence} is not among the allowed ones ({wanted})"))
    stripped, removed = run_steps(draft, terms.off)
    cleaned = clean(_document(stripped, retrieved), terms.rules)
    if isinstance(cleaned, Dropped):
        return Judged(cleaned, tuple(removed))
    if refused := _refused(cleaned, terms):
        return Judged(refused, tuple(removed))
    if (asked := terms.identifiers) is None:
        return Judged(cleaned, tuple(removed))
    findings = scan(cleaned.text, asked.names)
    return Judged(judge(cleaned, findings, asked.max_per_document) or cleaned, tuple(removed), tally(findings))


def _refused(document: Document, terms: Terms) -> Dropped | None:
    if terms.languages is not None and (reason := other_language(document.text, terms.languages)):
        return _dropped(document, "language", reason)
    if reason := poor_quality(document.text, terms.quality):
        return _dropped(document, "quality", reason)
    return None


def _document(draft: Draft, retrieved: date | None) -> Document:
    """A draft without its spans, which have done their work; its own mention of a language or a retraction is not kept."""
    day = retrieved.isoformat() if retrieved else ""
    same = (draft.id, draft.source, draft.text, draft.title, draft.licence, draft.year, draft.article_type, draft.uri)
    return Document(*same, retrieved=day)


def _dropped(row: Draft | Document, step: str, reason: str) -> Dropped:
    return Dropped(row.id, row.source, step, reason, row.text[:SAMPLE_CHARS], row.uri)

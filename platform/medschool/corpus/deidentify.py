"""Is there a person in this text? A scan for the identifiers that HIPAA's Safe Harbor rule lists.

45 CFR 164.514(b)(2)(i) names eighteen classes, (A) to (R). What is looked for, by the name that counts and reports use:

    (A) name*           (G) ssn               (M) device              (Q) photo        full-face, by mention
    (B) place           (H) medical_record    (N) url                 (R) other_number patient, visit, specimen... numbers
    (C) date, age       (I) health_plan       (O) ip
    (D) phone           (J) account           (P) biometric           by mention: a text holds no fingerprint
    (E) fax             (K) licence
    (F) email           (L) vehicle           * only with `names`, by the extra `deidentify`

`place` is a ZIP or post code, a street address or a post box; towns come with `names`. `date` is a day that a label ties to a
person (birth, admission, discharge, death, visit); the day of a trial or a law is no identifier. `age` is one person's age over
89.

The patterns are in medschool.corpus.identifiers; their recall and precision are measured on invented notes by a test, class by
class. On 5,093 abstracts of MEDLINE's baseline the scan found one thing, a mention of "their original photographs". Price: 2.7
million characters of such abstracts a second and core, half of that on notes full of numbers.

What this cannot do. It does not make a text anonymous, and nothing here is a finding in the sense of the law. It knows numbers by
their labels and layouts, in English and mostly North American forms: a bare number, a number spelled out, a label in another
language or a typing error in it are missed. It does not see a person described without a number ("the mayor's sister"), a month
without a day, a town without `names`, a rare disease in a small place, initials, or anything in an image. Names are found by a
statistical model, with misses. A source of clinical notes needs a review by people; this scan is the alarm that a source of
published text is not what it is taken for.
"""

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medschool.corpus.identifiers import PATTERNS
from medschool.errors import StageError
from medschool.rows import Document, Dropped

STEP = "identifiers"
SAMPLE_CHARS = 200
KINDS = ("name", *dict.fromkeys(pattern.kind for pattern in PATTERNS))


@dataclass(frozen=True)
class Finding:
    """A stretch of a text that looks like an identifier: `text[start:end]`, in characters."""

    kind: str
    """One of KINDS."""
    start: int
    end: int


def scan(text: str, names: bool = False) -> list[Finding]:
    """All findings, in the order of the text; no two overlap. Raises ServiceError when `names` is asked for and not installed."""
    lowered = text.lower()
    found = [Finding(pattern.kind, *span) for pattern in PATTERNS for span in pattern.spans(text, lowered)]
    if names:
        from medschool.corpus.names import find_names

        found += [Finding(kind, start, end) for kind, start, end in find_names(text)]
    return _apart(found)


def judge(document: Document, findings: Sequence[Finding], max_per_document: int) -> Dropped | None:
    """Why the document is quarantined, or None. Neither the reason nor the sample holds an identifier that was found."""
    if len(findings) <= max_per_document:
        return None
    reason = f"{len(findings)} identifiers, at most {max_per_document} are allowed: {_words(tally(findings))}"
    return Dropped(document.id, document.source, STEP, reason, masked(document.text, findings, SAMPLE_CHARS), document.uri)


def tally(findings: Sequence[Finding]) -> dict[str, int]:
    """How many of each class there are, those with none left out."""
    return dict(sorted(Counter(finding.kind for finding in findings).items()))


def check_quarantine(source: str, found: Mapping[str, int], quarantined: int, documents: int, max_share: float) -> None:
    """Raise StageError when more than `max_share` of a source's `documents` were quarantined; `found` is its tally."""
    if quarantined > max_share * documents:
        raise StageError(
            f"{quarantined} of {documents} documents hold identifiers of people ({_words(found)}), "
            f"more than clean.identifiers.max_quarantined_share allows ({max_share:g})",
            "look at the quarantine/ files with whoever answers for this data; do not raise the limit before",
            f"sources.{source}",
        )


def masked(text: str, findings: Sequence[Finding], chars: int) -> str:
    """The first `chars` characters of `text`, each finding in them replaced by its class: `[phone]`."""
    pieces, at = [], 0
    for finding in findings:
        if finding.start >= chars:
            break
        pieces += [text[at : finding.start], f"[{finding.kind}]"]
        at = finding.end
    return "".join([*pieces, text[at : max(at, chars)]])


def _apart(found: Sequence[Finding]) -> list[Finding]:
    """Of findings that overlap the first in `found`, in the order of the text."""
    taken: list[Finding] = []
    for finding in found:
        at = bisect.bisect(taken, finding.start, key=lambda other: other.start)
        free_before = at == 0 or taken[at - 1].end <= finding.start
        if free_before and (at == len(taken) or finding.end <= taken[at].start):
            taken.insert(at, finding)
    return taken


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())

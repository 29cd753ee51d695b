"""Clean one text, decide whether its length and licence allow it, and name its content and licence.

`clean` repairs encoding accidents (ftfy), removes control and invisible characters, collapses runs of spaces and settles on
Unicode NFC. Words it leaves alone: what is taken out of a text goes before, in corpus.steps. Runs of spaces go because the fast
LLaMA tokenizer and SentencePiece cut them differently: the same text would get two token sequences. Each pass can uncover work
for the one before it (a removed character may join an accent to its letter), so the passes repeat until nothing changes, which
makes `clean` idempotent: a rerun over its own output changes no hash.

Price: about 5 MB of text a second and core, nearly all of it ftfy.
It does not know the language of a text, nor whether it is any good.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, replace

import ftfy

from medschool.rows import Document, Dropped

SAMPLE_CHARS = 200
MAX_ROUNDS = 12

_FTFY = ftfy.TextFixerConfig(normalization="NFC", uncurl_quotes=False, explain=False)
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
_SPACES = re.compile(r"[^\S\n]+")
_BREAKS = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Rules:
    """What a document must satisfy to enter the corpus."""

    min_chars: int
    """Shortest text kept, in characters after cleaning."""
    licences: frozenset[str]
    """Licence groups that may be trained on, as in Document.licence."""


def clean(document: Document, rules: Rules) -> Document | Dropped:
    """The document with clean text, clean title and its sha256, or why it was dropped (`licence`, `too_short`)."""
    if document.licence not in rules.licences:
        allowed = ", ".join(sorted(rules.licences)) or "none"
        return _drop(document, "licence", f"licence {document.licence} is not among the allowed ones ({allowed})")
    text = clean_text(document.text)
    if len(text) < rules.min_chars:
        return _drop(document, "too_short", f"{len(text)} characters, at least {rules.min_chars} are wanted")
    title = " ".join(clean_text(document.title).split())
    return replace(document, text=text, title=title, sha256=hashlib.sha256(text.encode()).hexdigest())


def clean_text(text: str) -> str:
    """`text` repaired and with its whitespace settled; paragraphs stay apart by one blank line. Idempotent."""
    for _ in range(MAX_ROUNDS):
        better = _pass(text)
        if better == text:
            break
        text = better
    return text


def content_key(document: Document) -> str:
    """Hex sha256 of the case-folded, whitespace-normalised text: equal keys are exact duplicates of each other."""
    return hashlib.sha256(" ".join(document.text.casefold().split()).encode()).hexdigest()


def licence_group(words: str) -> str:
    """Group of a licence from its links and wording: `cc-by`, `cc-by-nc-nd`, `cc0`, `public-domain`, `other`..."""
    words = " ".join(words.lower().split())
    if link := re.search(r"creativecommons\.org/licen[sc]es/([a-z-]+)", words):
        return f"cc-{link[1]}"
    if re.search(r"publicdomain/zero|\bcc0\b|\bcc[ -]zero\b", words):
        return "cc0"
    if re.search(r"public[ -]domain", words.replace("publicdomain", "public domain")):
        return "public-domain"
    if "creative commons" in words or re.search(r"\bcc[ -]by\b", words):
        terms = [("-nc", r"non-? ?commercial|\bnc\b"), ("-nd", r"no-? ?deriv|\bnd\b"), ("-sa", r"share-? ?alike|\bsa\b")]
        return "cc-by" + "".join(suffix for suffix, pattern in terms if re.search(pattern, words))
    return "other"


def _pass(text: str) -> str:
    text = ftfy.fix_text(text, _FTFY)
    text = _INVISIBLE.sub("", text)
    text = _BLANK_LINES.sub("\n\n", _BREAKS.sub("\n", _SPACES.sub(" ", text))).strip()
    return unicodedata.normalize("NFC", text)


def _drop(document: Document, step: str, reason: str) -> Dropped:
    return Dropped(document.id, document.source, step, reason, document.text[:SAMPLE_CHARS], document.uri)

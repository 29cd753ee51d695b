"""The language of a text, by the text alone.

py3langid (a naive Bayes model over byte n-grams, 140 languages, shipped inside the package: nothing is fetched) looks at the
first 2,000 characters. Its probability is sharp on whole abstracts and low on what has no language: a line of lab values, a
formula, three words. So a document is dropped only where the guess is confident; what stays uncertain is kept. What a file
states is not asked: PubMed states the language of the article, and most of its foreign articles have an English abstract.

Price: 2 s once a process for the model, then about 1 ms an abstract.
Reference: Lui and Baldwin, "langid.py: An Off-the-shelf Language Identification Tool", ACL 2012.
"""

import functools
from typing import Any

LOOKED_AT_CHARS = 2000
SURE = 0.8
"""Probability from which a guess counts: 3,000 of 3,000 English abstracts of PubMed are taken for English, 2,999 at over 0.95."""
NO_LANGUAGE = "zxx"


def language_of(text: str) -> tuple[str, float]:
    """ISO 639-1 code (or `zxx` for what is no language) of the most probable language of `text`, and its probability."""
    code, probability = _identifier().classify(text[:LOOKED_AT_CHARS])
    return str(code), float(probability)


def other_language(text: str, languages: frozenset[str]) -> str:
    """Why `text` is in none of `languages`, with the guess and its probability; empty where it is, or may be."""
    code, probability = language_of(text)
    if code in languages or code == NO_LANGUAGE or probability < SURE:
        return ""
    return f"language is {code} (probability {probability:.3f}), not {' or '.join(sorted(languages))}"


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

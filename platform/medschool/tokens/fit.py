"""How well a tokenizer fits biomedical text: into how many tokens it cuts a word, by source and against other tokenizers.

A tokenizer made on general text cuts `thrombocytopenia` into pieces, so a document costs more tokens and a fact is spread over
more of them. Measured on a sample of each source's documents:

    tokens per word             over all words of the sample, each encoded as it stands in a sentence (a space in front)
    tokens per biomedical word  over those words only that are at least RATIO times as frequent in the source as in general text,
                                and occur at least LEAST_COUNT times in the sample
    whole                       share of biomedical words, counted as often as they occur, that are one token

Frequencies are compared with one added to every count, so that a word which general text lacks has a ratio too. A biomedical word
is thus a statement about two samples, not about medicine: names of a novel's heroes would be general text's own.

Price: one part of a source in memory at a time, PARTS of them at most; every distinct word is encoded once.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from medschool import storage
from medschool.artifact import Artifact
from medschool.errors import StageError
from medschool.seed import seed_of
from medschool.tokens.tokenizer import Tokenizer

DOCUMENTS = 2000
"""Documents sampled from each source."""
PARTS = 16
RATIO = 10.0
LEAST_COUNT = 5

_WORD = re.compile(r"[^\W\d_]{2,}(?:-[^\W\d_]{2,})*")


@dataclass(frozen=True)
class Sample:
    """Words of a source's sample with their counts, and its size."""

    documents: int
    chars: int
    words: Counter[str]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """One tokenizer on one source."""

    source: str
    tokenizer: str
    documents: int
    tokens: int
    chars_per_token: float
    tokens_per_word: float
    biomedical_words: int
    """Different ones."""
    tokens_per_biomedical_word: float | None
    """None where the source has no biomedical words, as for the general text itself."""
    whole_biomedical_share: float | None


def sample(corpus: Artifact, seed: int, documents: int = DOCUMENTS) -> Sample:
    """The documents of a corpus whose hash of (seed, id) is smallest, from at most PARTS of its parts, chosen the same way.

    Raises StageError when the corpus has no document.
    """
    files = [file.path for file in corpus.files if file.path.startswith("documents/")]
    parts = sorted(files, key=lambda path: seed_of(seed, "fit", path))[:PARTS]
    ranked: list[tuple[int, str]] = []
    for path in parts:
        rows = storage.read_parquet(corpus.uri(path), ["id", "text"]).to_pydict()
        ranked += [(seed_of(seed, "fit", id_), text) for id_, text in zip(rows["id"], rows["text"], strict=True)]
        ranked = sorted(ranked)[:documents]
    if not ranked:
        raise StageError("holds no document", "look at what its funnel dropped", corpus.manifest_uri)
    texts = tuple(text for _, text in ranked)
    words = Counter(word.lower() for text in texts for word in _WORD.findall(text))
    return Sample(len(texts), sum(map(len, texts)), words, texts)


def biomedical(words: Counter[str], general: Counter[str]) -> Counter[str]:
    """The words that are RATIO times as frequent as in `general`, with their counts."""
    whole, base = words.total() + len(words), general.total() + len(general)
    return Counter(
        {
            word: count
            for word, count in words.items()
            if count >= LEAST_COUNT and ((count + 1) / whole) / ((general[word] + 1) / base) >= RATIO
        }
    )


def fits(samples: Mapping[str, Sample], general: Counter[str], tokenizers: Mapping[str, Tokenizer]) -> list[Fit]:
    """One Fit for every source and tokenizer. general: word counts of the text that `biomedical` compares with."""
    found = []
    for source, one in samples.items():
        special = biomedical(one.words, general)
        for name, tokenizer in tokenizers.items():
            lengths = dict(zip(one.words, map(len, tokenizer.encode([f" {word}" for word in one.words])), strict=True))
            tokens = sum(map(len, tokenizer.encode(list(one.texts))))
            found.append(
                Fit(
                    source=source,
                    tokenizer=name,
                    documents=one.documents,
                    tokens=tokens,
                    chars_per_token=one.chars / max(1, tokens),
                    tokens_per_word=_mean(one.words, lengths) or 0.0,
                    biomedical_words=len(special),
                    tokens_per_biomedical_word=_mean(special, lengths),
                    whole_biomedical_share=_mean(special, {word: lengths[word] == 1 for word in special}),
                )
            )
    return found


def _mean(words: Counter[str], values: Mapping[str, float]) -> float | None:
    """Mean of a value a word, each as often as it occurs; None without words."""
    return sum(count * values[word] for word, count in words.items()) / words.total() if words else None

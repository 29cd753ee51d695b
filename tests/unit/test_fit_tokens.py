"""Tokens per word and per biomedical word, against a plain count over the texts."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medschool.artifact import Artifact, ArtifactFile, write_parquet
from medschool.errors import StageError
from medschool.rows import DOCUMENT_SCHEMA, Document, table
from medschool.tokens.fit import biomedical, fits, sample
from medschool.tokens.tokenizer import Tokenizer


class _Found:
    def __init__(self, text: str) -> None:
        self.ids = [ord(letter) for letter in text]


class _Letters:
    """A tokenizer whose tokens are letters."""

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        return [_Found(text) for text in texts]


LETTERS = Tokenizer(_Letters(), 0, 1000)


def corpus(folder: Path, texts: list[str], parts: int = 2) -> Artifact:
    files: list[ArtifactFile] = []
    for part in range(parts):
        rows = [
            Document(f"d:{number}", "papers", text, "", "cc0", None, "abstract", "raw/x")
            for number, text in enumerate(texts)
            if number % parts == part
        ]
        files.append(write_parquet(str(folder), f"documents/{part:05}.parquet", table(rows, DOCUMENT_SCHEMA)))
    return Artifact(
        "corpus/papers", "f", "manifest", str(folder), tuple(files), {"documents": len(texts), "dropped": {}}, {}, 0.0
    )


def test_figures_are_those_of_a_plain_count(tmp_path: Path) -> None:
    texts = ["the renal cortex, the renal artery"] * 6 + ["The end of 12 days"] * 3
    papers = sample(corpus(tmp_path / "papers", texts), seed=1)
    general = sample(corpus(tmp_path / "general", ["the end of the day"] * 200), seed=1)
    assert papers.words == Counter({"the": 15, "renal": 12, "cortex": 6, "artery": 6, "end": 3, "of": 3, "days": 3})
    assert set(biomedical(papers.words, general.words)) == {"renal", "cortex", "artery"}
    (found,) = fits({"papers": papers}, general.words, {"letters": LETTERS})
    words = [word for text in texts for word in text.replace(",", "").lower().split() if word.isalpha()]
    assert found.tokens_per_word == pytest.approx(sum(len(word) + 1 for word in words) / len(words))
    assert found.tokens_per_biomedical_word == pytest.approx((12 * 6 + 6 * 7 + 6 * 7) / 24)
    assert (found.tokens, found.chars_per_token, found.documents) == (sum(map(len, texts)), 1.0, 9)
    assert found.whole_biomedical_share == 0.0


def test_a_sample_does_not_depend_on_the_parts(tmp_path: Path) -> None:
    texts = [f"document number {'x' * number}" for number in range(40)]
    one, two = (sample(corpus(tmp_path / str(parts), texts, parts), seed=3, documents=7) for parts in (1, 5))
    assert one == two and one.documents == 7


def test_general_text_has_no_biomedical_words(tmp_path: Path) -> None:
    general = sample(corpus(tmp_path, ["plain words of a story"] * 30), seed=1)
    (found,) = fits({"general": general}, general.words, {"letters": LETTERS})
    assert (found.biomedical_words, found.tokens_per_biomedical_word, found.whole_biomedical_share) == (0, None, None)


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no document"):
        sample(corpus(tmp_path, []), seed=1)

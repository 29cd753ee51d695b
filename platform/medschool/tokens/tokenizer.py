"""The model's tokenizer as arrays: batches of texts in, integer arrays out, EOS known.

Read straight from tokenizer.json by the Rust library: a worker is ready in 0.3 s; importing transformers takes 3 s. The ids are
those of AutoTokenizer with add_special_tokens=False, except that a control token written out in a text (`<|im_end|>`) stays text.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from medschool.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer. `dtype` is the smallest unsigned type that holds every id."""

    raw: Any
    eos_id: int
    vocab_size: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, without special tokens; on as many threads as RAYON_NUM_THREADS says."""
        return [np.asarray(found.ids, dtype=self.dtype) for found in self.raw.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, rows: list[list[int]]) -> list[str]:
        """Text of each list of token ids, without special tokens."""
        return [str(text) for text in self.raw.decode_batch(rows, skip_special_tokens=True)]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load from a folder with tokenizer.json and tokenizer_config.json. Raises InputError without them or an EOS token."""
    for name in TOKENIZER_FILES[:2]:
        if not (folder / name).is_file():
            raise InputError(f"no {name}", "save the tokenizer with save_pretrained of a fast tokenizer", str(folder))
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.no_padding()
    raw.no_truncation()
    raw.encode_special_tokens = True
    named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("eos_token")
    eos = named["content"] if isinstance(named, dict) else named
    eos_id = raw.token_to_id(eos) if eos else None
    if eos_id is None:
        raise InputError(
            f"the EOS token is {eos!r}, which is not in the vocabulary", "name `eos_token` in tokenizer_config.json", str(folder)
        )
    return Tokenizer(raw, int(eos_id), raw.get_vocab_size(with_added_tokens=True))

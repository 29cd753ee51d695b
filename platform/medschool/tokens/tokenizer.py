"""The model's tokenizer as arrays: batches of texts in, integer arrays out, EOS known.

Only the fast (Rust) tokenizers of transformers are accepted; they encode a batch on all cores the process may use.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
        """Token ids of each text, without special tokens."""
        encodings = self.raw.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=self.dtype) for encoding in encodings]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load from a folder with tokenizer.json. Raises InputError when there is none, or no EOS token."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise InputError("no tokenizer.json", "save the tokenizer with save_pretrained of a fast tokenizer", str(folder))
    raw = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if raw.eos_token_id is None:
        raise InputError("the tokenizer has no EOS token", "name `eos_token` in tokenizer_config.json", str(folder))
    return Tokenizer(raw, int(raw.eos_token_id), len(raw))

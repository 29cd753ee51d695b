"""A tokenizer that is ten times faster, used only where it is proven equal on the very text that it is about to encode.

gigatoken (MIT licence, the extra `fast`) encodes LLaMA-format vocabularies some ten times faster than the library that models are
trained with. What counts is that its ids are the same. So it is never trusted by name or version: before a job, both encode a
sample of the job's own documents and EDGE_CASES, and one id that differs sends the whole job the ordinary way. Ids are equal by
this gate, so the choice enters no fingerprint; it stands in the artifact's facts, with the reason and the size of the sample.

The special tokens are taken out of the tokenizer.json that gigatoken reads. They stay in the vocabulary, but a control token that
is written out in a text (`</s>`) then stays text, as medschool.tokens.tokenizer has it. Vocabularies that gigatoken cannot load
(SmolLM2's has no token for some single bytes) are no error: the ordinary way is always there.

Price of the gate: the sample once through the ordinary tokenizer, about half a second for SAMPLE_CHARS.
"""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medschool.tokens.tokenizer import Tokenizer, load_tokenizer

SAMPLE_CHARS = 500_000
"""Most characters of a job's own documents that the gate compares."""
EDGE_CASES = (  # written to be confusing
    "",
    " ",
    "a",
    "\n",
    "\x00",
    "a\x00b\x00\x00c",
    "".join(map(chr, range(256))),
    "<s>", "a <s> b </s><unk> c", "<|endoftext|> <|im_start|>user\n<|im_end|>", "[INST] [/INST] <pad> <0x41> <0x0A>",
    "▁", "▁▁a ▁ b▁", "Ġ Ċ âĢĻ",
    "  two   three    four" + " " * 300 + "end  ",
    "\t\tx\r\ny\r\rz\n\n\n\n\u00a0\u2003\u3000\u200b\u2028\u2029\x85\ufeffw",
    "0 1 22 333 4444 55555 " + "1234567890" * 50 + " 1,234.56 0.05% 10^-7 ½ ² ₃ Ⅷ ٣٤ ४५",
    "It's don't we'll I'M they'Ve 'tis rock'n'roll",
    "IL-2/TNF-\u03b1 β2-microglobulin p<0.05 (95% CI: 1.2\u20133.4) µg·mL⁻¹ H₂O Na⁺/K⁺-ATPase 5'-ATG-3' ±≥≤→",
    "e\u0301 é \u0041\u030a Å a" + "\u0301\u0323" * 20 + " \ufb01 \ufb02 \uff21 \uff76\uff9e",
    "😀👍🏽👩‍👩‍👧‍👦🇩🇪❤️ 🫀🧬",
    "心电图显示窦性心律。肝硬化患者。日本語の医学用語カタカナ한국어 의학",
    "צילום חזה תקין. التهاب الكبد ‏(HBV)‏ فارسی",
    "диагноз Гипертония ελληνικά हिन्दी ไทยไม่มีช่องว่าง ქართული አማርኛ",
    "𝐀𝛽𝒞 𐍈 \U0010ffff \U000e0001 \ue000 \ufffd \uffff",
    "x" * 5_000, "ab" * 5_000, "A" * 3_000 + "é" * 3_000,
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 40,
    ("The patient was seen again after two weeks; the wound had closed. " * 160)[:10_000],
    "/".join(["https://example.org/a_b-c?d=e&f=%20#g"] * 20),
    "=" * 100 + "-" * 101 + "." * 102 + "_" * 103 + "\\" * 5 + "{[()]}" * 30,
)  # fmt: skip
"""What tokenizers disagree about: control tokens as text, spaces, digits, combining marks, scripts, very long words and lines."""

Encode = Callable[[list[str]], list[np.ndarray]]


@dataclass(frozen=True)
class Gate:
    """Whether the fast way is taken, and why."""

    used: bool
    reason: str
    documents: int
    """Documents of the sample that both ways encoded, edge cases not counted."""

    def __str__(self) -> str:
        return f"{'used' if self.used else 'not used'}: {self.reason}"


def open_gate(folder: Path, slow: Tokenizer, sample: Sequence[str]) -> Gate:
    """Compare both ways on `sample` and EDGE_CASES; the fast way is used when every id of every text is equal."""
    try:
        fast = fast_encode(folder)
    except ImportError:
        return Gate(False, "gigatoken is not installed (the extra `fast`)", 0)
    except Exception as error:  # what it raises for a vocabulary is nowhere stated
        return Gate(False, f"gigatoken refuses this vocabulary ({_first_line(error)})", 0)
    texts = [*EDGE_CASES, *sample]
    try:
        found, expected = fast(texts), slow.encode(texts)
    except Exception as error:
        return Gate(False, f"gigatoken failed on the sample ({_first_line(error)})", 0)
    for text, left, right in zip(texts, found, expected, strict=True):
        if not np.array_equal(left, right):
            return Gate(False, f"ids differ for a text that begins with {text[:20]!r}", len(sample))
    return Gate(True, f"ids equal on {len(sample)} documents and {len(EDGE_CASES)} edge cases", len(sample))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def fast_encode(folder: Path) -> Encode:
    """The same as Tokenizer.encode of the tokenizer in `folder`, by gigatoken, on the calling thread.

    Raises ImportError where gigatoken is not installed, and what gigatoken raises for a vocabulary that it does not know.
    """
    return _fast_encode(str(folder))


@functools.lru_cache(maxsize=2)
def _fast_encode(folder: str) -> Encode:
    import gigatoken

    raw = json.loads(Path(folder, "tokenizer.json").read_text(encoding="utf-8"))
    raw["added_tokens"] = [token for token in raw.get("added_tokens", []) if not token["special"]]
    fast, dtype = gigatoken.Tokenizer.from_json(json.dumps(raw)), load_tokenizer(Path(folder)).dtype

    def encode(texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        layout = fast.encode_batch(texts, parallel=False).layout
        ids, ends = np.asarray(layout.content.data).astype(dtype), np.asarray(layout.offsets.data)
        return [ids[start:stop] for start, stop in itertools.pairwise(ends)]

    return encode

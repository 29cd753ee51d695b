"""A tokenizer that is ten times faster, used only where it is proven equal on the very text that it is about to encode.

gigatoken (MIT licence, the extra `fast`) encodes LLaMA-format vocabularies some ten times faster than the library that models are
trained with. What counts is that its ids are the same. So it is never trusted by name or version: before a job, both encode a
sample of the job's own documents and EDGE_CASES, and one id that differs sends the whole job the ordinary way. Ids are equal by
this gate, so the choice enters no fingerprint; it stands in the artifact's facts, with the reason and the size of the sample.

The special tokens are taken out of the tokenizer.json that gigatoken reads. They stay in the vocabulary, but a control token that
is written out in a text (`</s>`) then stays text, as medschool.tokens.tokenizer has it.

Byte-level vocabularies that keep digits apart (SmolLM2, StarCoder2) are cut for it: gigatoken knows the words of GPT-2, but not
that digits stand alone, so texts are cut at digits here and the pieces' ids joined again. What is a digit is asked of the
tokenizer itself. Single bytes that such a vocabulary lacks get an id that nothing uses, because gigatoken wants all 256; the rare
texts that hold one, or a character beyond CUT_BELOW, are encoded the ordinary way. Vocabularies that gigatoken cannot load are no
error: the ordinary way is always there.

Price of the gate: the sample once through the ordinary tokenizer, about half a second for SAMPLE_CHARS.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

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

CUT_BELOW = 0x20000
"""Characters from here on are unusual ideographs and private ones; none is a digit."""

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
    slow = load_tokenizer(Path(folder))
    cut = _cut(raw)
    fast = gigatoken.Tokenizer.from_json(json.dumps(raw if cut is None else cut.raw))

    def flat(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, and where each text ends, with a 0 before."""
        if not texts:
            return np.empty(0, slow.dtype), np.zeros(1, np.int64)
        layout = fast.encode_batch(texts, parallel=False).layout
        return np.asarray(layout.content.data).astype(slow.dtype), np.asarray(layout.offsets.data)

    def encode_whole(texts: list[str]) -> list[np.ndarray]:
        ids, ends = flat(texts)
        return [ids[start:stop] for start, stop in itertools.pairwise(ends)]

    def encode_cut(texts: list[str], cut: "_Cut") -> list[np.ndarray]:
        pieces, bounds, others = list[str](), [0], dict[int, str]()
        for number, text in enumerate(texts):
            if cut.not_here.search(text):
                others[number] = text
            else:
                near = text.isascii() or not _FAR.search(text)
                pieces += (cut.near if near else cut.any).findall(text)
            bounds.append(len(pieces))
        ids, ends = flat(pieces)
        found = [ids[start:stop] for start, stop in itertools.pairwise(ends[bounds])]
        for number, other in zip(others, slow.encode(list(others.values())), strict=True):
            found[number] = other
        return found

    return encode_whole if cut is None else functools.partial(encode_cut, cut=cut)


@dataclass(frozen=True)
class _Cut:
    """How texts are cut for a tokenizer that keeps digits apart."""

    raw: dict[str, Any]
    """The tokenizer.json of what encodes the pieces."""
    near: re.Pattern[str]
    """A piece of a text without characters beyond U+FFFF: `re` looks those up in a bitmap."""
    any: re.Pattern[str]
    """A piece of any text; three times slower."""
    not_here: re.Pattern[str]
    """What a text must not hold."""


_BEYOND = f"{chr(0x10000)}-{chr(0x10FFFF)}"
_FAR = re.compile(f"[{_BEYOND}]")


def _cut(raw: dict[str, Any]) -> _Cut | None:
    """None for any other pre-tokenizer than digits alone, then GPT-2's words as bytes."""
    wanted = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]
    steps = [
        {key: value for key, value in step.items() if key != "trim_offsets"}
        for step in (raw["pre_tokenizer"] or {}).get("pretokenizers", [])
    ]
    if steps != wanted or raw["normalizer"] is not None:
        return None
    chars = "".join(chr(code) for code in range(CUT_BELOW) if not 0xD800 <= code < 0xE000)
    alone = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str
    digits = [piece for piece, _ in alone(chars) if len(piece) == 1 and len(alone("a" + piece)) == 2]
    near, far = ("".join(some) for _, some in itertools.groupby(digits, lambda digit: digit > "\uffff"))
    vocab, letters = raw["model"]["vocab"], pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(chars)[0][0]
    lacking = {byte for byte, letter in zip(chars.encode(), letters, strict=True) if letter not in vocab}
    if any(byte >= 0x80 for byte in lacking):
        return None
    unused = itertools.count(max([*vocab.values(), *(token["id"] for token in raw["added_tokens"])]) + 1)
    spare = {letter: next(unused) for letter in sorted(pre_tokenizers.ByteLevel.alphabet() - vocab.keys())}
    never = "".join(re.escape(chr(byte)) for byte in sorted(lacking))
    return _Cut(
        raw | {"model": raw["model"] | {"vocab": vocab | spare}, "pre_tokenizer": raw["pre_tokenizer"]["pretokenizers"][1]},
        re.compile(f"[^{near}]+|[{near}]"),
        re.compile(f"(?:[^{near}{_BEYOND}]+|(?![{far}])[{_BEYOND}])+|[{near}{far}]"),
        re.compile(f"[{never}{chr(CUT_BELOW)}-{chr(0x10FFFF)}]"),
    )

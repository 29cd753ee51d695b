"""Messages to token ids, and token ids back to text as they arrive.

The prompt is rendered by the one template that tuning and exams use too (medschool.instructions.template). Roles are checked by
the API, because a template writes them next to control tokens.

Text out is harder than it looks: one character may span several tokens, and a stop string may arrive in pieces. `Answer`
keeps back an unfinished character and the longest tail that could still become a stop string, and gives out the rest at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from medschool import rows
from medschool.instructions.template import ChatTemplate

UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are not (yet) a character."""

Message = dict[str, str]
"""{"role": system | user | assistant, "content": text}"""


class Text(Protocol):
    """A model's reading and writing."""

    end_ids: tuple[int, ...]
    """Tokens that end an answer."""
    vocab_size: int
    """Token ids are below it."""
    longest_token: int
    """Characters of the longest token, so that a text far above the context is refused without being encoded."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Prompt of a conversation, with the opening of the model's turn. Raises InputError when the template refuses it."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Plain text, without special tokens; a control token's name in it stays text. Raises InputError where it cannot."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; control tokens give nothing, incomplete characters give U+FFFD."""
        ...

    def name(self, token: int) -> str:
        """One token as a client sees it: its text, or its name in the vocabulary where it has no text of its own."""
        ...

    def control(self, name: str) -> int | None:
        """The control token of this name."""
        ...

    def describe(self) -> dict[str, str | None]:
        """Names of the special tokens and the chat template, as transformers' tokenizer_config.json calls them."""
        ...


class BytesText:
    """Needs no files: a token is a byte of UTF-8, a prompt is the contents line by line. For `EchoEngine`."""

    end_ids: tuple[int, ...] = ()
    vocab_size = 256
    longest_token = 1

    def encode(self, messages: Sequence[Message]) -> list[int]:
        return list("\n".join(message["content"] for message in messages).encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def encode_text(self, text: str) -> list[int]:
        return list(text.encode())

    def name(self, token: int) -> str:
        return chr(token) if token < 128 else f"<0x{token:02X}>"

    def control(self, name: str) -> int | None:
        return None

    def describe(self) -> dict[str, str | None]:
        return {"tokenizer_class": "BytesText", "bos_token": None, "eos_token": None, "pad_token": None, "chat_template": None}


class CheckpointText:
    """The tokenizer and the template of a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self._template = ChatTemplate(folder)
        self.end_ids: tuple[int, ...] = (self._template.eos_id,)
        self._names = self._template.token_names()
        self.vocab_size = len(self._names)
        self.longest_token = max(map(len, self._names))

    def encode(self, messages: Sequence[Message]) -> list[int]:
        return self._template.prompt([rows.Message(message["role"], message["content"]) for message in messages])

    def decode(self, tokens: Sequence[int]) -> str:
        return self._template.decode(tokens)

    def encode_text(self, text: str) -> list[int]:
        return self._template.encode(text)

    def name(self, token: int) -> str:
        if token >= len(self._names):  # models round their vocabulary up
            return f"<unused {token}>"
        name = self._names[token]
        # SentencePiece's mark of a space is read here, since decoding one token alone drops it
        plain = name.replace("\u2581", " ") if "\u2581" in name else self.decode([token])
        return name if not plain or UNFINISHED in plain else plain

    def control(self, name: str) -> int | None:
        return next((token for token in self._template.control_ids if self._names[token] == name), None)

    def describe(self) -> dict[str, str | None]:
        return self._template.describe()


class Answer:
    """The text of one answer, token by token. The pieces given out join to what decoding all tokens at once gives.

    stops: strings that end the answer; they and what follows are not given out.
    """

    def __init__(self, text: Text, stops: Sequence[str] = ()) -> None:
        self._text, self._stops = text, [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._window = self._decoded = 0  # decode from `_window`; the text of [_window, _decoded) was taken before
        self._pending = ""
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> str:
        """Text that is certain now; sets `stopped` when a stop string is complete."""
        self._tokens.extend(tokens)
        return self._give(self._take(last=False), last=False)

    def close(self) -> str:
        """The rest, when no tokens follow."""
        return self._give(self._take(last=True), last=True)

    def _take(self, last: bool) -> str:
        """Text of the tokens not yet taken, '' while it ends in an unfinished character.

        Decoding starts a few tokens back, because some tokenizers drop the space before the first token they see.
        """
        before = self._text.decode(self._tokens[self._window : self._decoded])
        now = self._text.decode(self._tokens[self._window :])
        if len(now) <= len(before) or (now.endswith(UNFINISHED) and not last):
            return ""
        self._window, self._decoded = self._decoded, len(self._tokens)
        return now[len(before) :]

    def _give(self, fresh: str, last: bool) -> str:
        """Cut at the first stop string, else keep back the tail that may begin one."""
        if self.stopped:
            return ""
        self._pending += fresh
        ends = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        self.stopped = bool(ends)
        keep = 0 if last else max((_overlap(self._pending, stop) for stop in self._stops), default=0)
        cut = min(ends) if ends else len(self._pending) - keep
        out, self._pending = self._pending[:cut], self._pending[cut:]
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)

"""The one prompt template: conversations to token ids, for tuning, exams and serving alike.

A conversation is rendered by the checkpoint's own `chat_template.jinja`. What a message says is text: `<|im_end|>` in it is
encoded as those characters, never as the control token, otherwise a message could end its own turn and speak for the system.

For tuning, the tokens that are trained are the assistant's turns with the EOS that ends each. The whole conversation is encoded
once. Where a turn begins is the length of the conversation before it, opened for the assistant; that prefix is compared token by
token with the whole, so a template or a tokenizer that merges across the border is refused instead of giving a wrong mask.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medschool.errors import InputError
from medschool.rows import Message
from medschool.tokens.tokenizer import load_tokenizer


class ChatTemplate:
    """The tokenizer and the template of a checkpoint folder. Raises InputError when the folder has no template."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        plain = load_tokenizer(folder)
        self.eos_id, self.dtype = plain.eos_id, plain.dtype
        self._plain, self._where = plain, str(folder)
        self._raw: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not self._raw.chat_template:
            raise InputError("no chat_template.jinja", "export the model again with its prompt template", str(folder))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """A conversation with the opening of the assistant's turn. Raises InputError when the template refuses it."""
        return self._render(messages, opened=True)

    def encode(self, text: str) -> list[int]:
        """Plain text without special tokens."""
        return [int(token) for token in self._plain.encode([text])[0]]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; control tokens give nothing, incomplete characters give U+FFFD."""
        return str(self._raw.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def conversation(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n,) of a whole conversation, and which of them (n,) bool are trained: assistant turns, each with its EOS.

        Raises InputError when the template does not let the turns be told apart, or does not end them with the EOS token.
        """
        tokens = self._render(messages, opened=False)
        trained = np.zeros(len(tokens), dtype=bool)
        for place, message in enumerate(messages):
            if message.role == "assistant":
                start = len(before := self.prompt(messages[:place]))
                if tokens[:start] != before:
                    raise InputError(
                        "the template renders the start of a conversation differently once it goes on",
                        "use a template that only appends",
                        self._where,
                    )
                trained[start : self._end(tokens, start)] = True
        return np.asarray(tokens, dtype=self.dtype), trained

    def unended(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to its last answer, without the EOS that ends it. Raises InputError as above."""
        tokens, trained = self.conversation(messages)
        return [int(token) for token in tokens[: trained.nonzero()[0][-1]]]

    def _end(self, tokens: list[int], start: int) -> int:
        """Behind the EOS that ends the turn which begins at `start`."""
        try:
            return tokens.index(self.eos_id, start) + 1
        except ValueError:
            raise InputError(
                "the template does not end an assistant's turn with the EOS token",
                "name that token as `eos_token` in tokenizer_config.json",
                self._where,
            ) from None

    def _render(self, messages: Sequence[Message], opened: bool) -> list[int]:
        from jinja2 import TemplateError

        try:
            return list(
                self._raw.apply_chat_template(
                    [{"role": message.role, "content": message.content} for message in messages],
                    add_generation_prompt=opened,
                    return_dict=False,
                    sanitize_control_tokens=True,
                )
            )
        except (TemplateError, ValueError) as error:
            problem = f"the model's template refuses this conversation: {error}"
            raise InputError(problem, "change the messages", "messages") from error

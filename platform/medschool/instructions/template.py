"""The one prompt template: conversations to token ids, for tuning, exams and serving alike.

A conversation is rendered by the checkpoint's own `chat_template.jinja`, or by one of NAMED, which the export then writes
there. What a message says is text: `<|im_end|>` in it is encoded as those characters, never as the control token
(instructions.render).

For tuning, the tokens that are trained are the assistant's turns with the EOS that ends each, found by offsets in the text of
the whole conversation (instructions.mask). A prompt is encoded by the same function, with the same breaks at the borders of
earlier answers, so what serving reads is what tuning read.

Price: about 3 microseconds a token, nearly all of it the tokenizer's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medschool.errors import InputError
from medschool.instructions.mask import Masked, Turns, masked, tokens_of
from medschool.instructions.pmc_llama import PMC_LLAMA
from medschool.instructions.render import Rendering, Span, control_pattern, render
from medschool.recipe import Recipe
from medschool.rows import Message
from medschool.tokens.tokenizer import load_tokenizer

NAMED = {"pmc_llama": PMC_LLAMA}
"""Templates that a recipe can name in place of the model's own."""
TEMPLATE_FILE = "chat_template.jinja"


class RefusedError(InputError):
    """The template refuses one conversation, as Mistral's does where two turns of the user follow each other."""


def template_of(recipe: Recipe) -> str:
    """The recipe's template by name; `model` where it has no conversations."""
    return "model" if recipe.chats is None else recipe.chats.template


class ChatTemplate:
    """The tokenizer of a checkpoint folder with its own template, or the one of NAMED that `template` names.

    Raises InputError when the folder has no template of its own and `template` is `model`.
    """

    def __init__(self, folder: Path, template: str = "model") -> None:
        from transformers import AutoTokenizer

        plain = load_tokenizer(folder)
        self.eos_id, self.dtype = plain.eos_id, plain.dtype
        self._plain, self._where = plain, str(folder)
        self._raw: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._raw.backend_tokenizer.no_padding()
        self._raw.backend_tokenizer.no_truncation()
        text = NAMED.get(template, self._raw.chat_template)
        if not text:
            remedy = "set chats.template: pmc_llama in the recipe, or put the model's own chat_template.jinja into its folder"
            raise InputError("no chat_template.jinja", remedy, str(folder))
        self._text: str = text
        added = self._raw.added_tokens_decoder.items()
        control = {
            token.content: index for index, token in added if token.special or (token.content in text and token.content.strip())
        }
        self.control_ids = frozenset(control.values())
        """Tokens that the template writes and no message can: special ones, and other added ones that stand in the template."""
        self._control = control_pattern(control)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """A conversation with the opening of the assistant's turn. Raises RefusedError when the template refuses it."""
        return tokens_of(self._rendered(messages, opened=True), self._encode).ids

    def encode(self, text: str) -> list[int]:
        """Plain text without special tokens."""
        return [int(token) for token in self._plain.encode([text])[0]]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; control tokens give nothing, incomplete characters give U+FFFD."""
        return str(self._raw.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_names(self) -> list[str]:
        """What the vocabulary calls each token id."""
        return [str(name or "") for name in self._raw.convert_ids_to_tokens(list(range(len(self._raw))))]

    def describe(self) -> dict[str, str | None]:
        """Names of the special tokens and the template, by the keys of transformers' tokenizer_config.json."""
        special = {name: getattr(self._raw, name) for name in ("bos_token", "eos_token", "pad_token")}
        return {"tokenizer_class": type(self._raw).__name__, **special, "chat_template": self._text}

    def masked(self, messages: Sequence[Message], turns: Turns = "all") -> Masked:
        """Token ids of a whole conversation, and which of them are trained.

        Raises RefusedError when the template refuses it, InputError when it does not let the turns be told apart, or does not end
        them with the EOS token.
        """
        return masked(self._rendered(messages, opened=False), self._encode, self.eos_id, turns, self._where)

    def conversation(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """As `masked` for all turns: token ids (n,), and which of them (n,) bool are trained."""
        found = self.masked(messages)
        return np.asarray(found.ids, dtype=self.dtype), np.asarray(found.trained, dtype=bool)

    def unended(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to its last answer, without the EOS that ends it. Raises as `masked`."""
        found = self.masked(messages, "last")
        return found.ids[: len(found.ids) - 1 - found.trained[::-1].index(True)]

    def control_tokens(self, tokens: Sequence[int]) -> list[int]:
        """The control tokens among `tokens`, in order."""
        return [token for token in tokens if token in self.control_ids]

    def _rendered(self, messages: Sequence[Message], opened: bool) -> Rendering:
        return render(messages, opened, self._write, self._control)

    def _encode(self, text: str, as_text: bool) -> tuple[list[int], list[Span]]:
        """Token ids of a text and the characters of each; names of control tokens stay text where `as_text`."""
        backend = self._raw.backend_tokenizer  # called right: transformers' own call takes ten times as long for one text
        backend.encode_special_tokens = as_text
        found = backend.encode(text, add_special_tokens=False)
        ids, spans = list(found.ids), list(found.offsets)
        if as_text and self.control_ids.intersection(ids):  # an added token that is not special is found in plain text too
            problem = f"the tokenizer makes a control token of {text!r} even where it is plain text"
            raise RefusedError(problem, "take it out of the messages", "messages")
        return ids, spans

    def _write(self, messages: Sequence[Message], opened: bool) -> str:
        """The conversation as text, by the template."""
        from jinja2 import TemplateError

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                self._raw.apply_chat_template(turns, chat_template=self._text, add_generation_prompt=opened, tokenize=False)
            )
        except (TemplateError, ValueError, TypeError) as error:
            problem = f"the model's template refuses this conversation: {error}"
            raise RefusedError(problem, "change the messages", "messages") from error

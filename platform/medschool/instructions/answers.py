"""What a teacher answered, kept in the store under the hash of what it was asked.

    answers/3f/3f9a...e1.json    {"text": ..., "whole": true, "prompt_tokens": 210, "answer_tokens": 180}

One small file an answer, written whole and then named, the moment it arrives: a process that is killed loses what was under way
and nothing else, and a file that is torn or damaged counts as none. The first answer to a request stays; it is never replaced by
another one, so that a second run reads what the first one read.

The name covers all that decides the answer: address and model of the teacher, messages, temperature, longest answer, and the
number of the try. The same model at another address is another teacher: nothing tells that it is the same one. Neither the
question nor the key is written down.

Price: one read and one write an answer, milliseconds beside the seconds that a teacher takes; 200,000 answers are 300 MB.
"""

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from medschool import storage
from medschool.artifact import digest_of
from medschool.recipe.instructions import Teacher

FOLDER = "answers"
"""Below the store; shared by all sets, recipes and attempts."""


@dataclass(frozen=True)
class Answer:
    """One answer, and the tokens that were paid for it."""

    text: str
    whole: bool
    """False where the teacher was cut off at the longest answer."""
    prompt_tokens: int
    answer_tokens: int


_STORED = TypeAdapter(Answer)


def key_of(teacher: Teacher, messages: list[dict[str, str]], number: int) -> str:
    """Hex sha256 of a request and the number of its try, counted from 1."""
    asked = teacher.model_dump(mode="json", include={"url", "model", "temperature", "max_answer_tokens"})
    return digest_of(asked | {"messages": messages, "number": number})


def read_answer(cache_uri: str, key: str) -> Answer | None:
    """The answer that is kept under `key`; None where there is none, or what is there is not whole."""
    try:
        return _STORED.validate_json(storage.read_bytes(_uri(cache_uri, key)), strict=True)
    except (FileNotFoundError, ValidationError):
        return None


def keep_answer(cache_uri: str, key: str, answer: Answer) -> Answer:
    """Keep an answer; returns the one that counts, which is the first. A file that is not whole is replaced."""
    data = _STORED.dump_json(answer)
    if storage.put_if_absent(_uri(cache_uri, key), data):
        return answer
    if (first := read_answer(cache_uri, key)) is not None:
        return first
    storage.write_bytes(_uri(cache_uri, key), data)
    return answer


def _uri(cache_uri: str, key: str) -> str:
    return storage.join(cache_uri, key[:2], f"{key}.json")

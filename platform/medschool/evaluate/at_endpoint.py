"""An exam sat by a model behind an OpenAI-compatible endpoint, item by item, with every answer kept in a file.

    letters           -> asked in words instead: the paper's protocol, `generated`, because a letter's probability behind an
                         assistant's half turn cannot be asked for over chat completions
    chain_of_thought  -> the same with the rationale instruction, up to the exam's thought_tokens
    lm_eval           -> token ids of every ending behind its context to /completions, with echo and log-probabilities

    items --asked, some at once--> <exam>.<hash>.jsonl, a line an item   --asked again only where a line is missing or was refused

The file's name has the protocol's hash, so answers under another protocol are never taken for these. The endpoint puts questions
into its own template, which nobody can see from here: the hash of `generated` and `chain_of_thought` says so, and is never that
of the same exam sat by a checkpoint. Under `lm_eval` there is no template, and the hash is the same as locally.

An item that the endpoint refuses (too long, say) is wrong, says so in its line, and is counted. When nothing but refusals come,
the exam ends with what was said.

Under `lm_eval` the row of tokens and one more must fit the model's context: of items that are cut, two tokens more are lost than
where the checkpoint is at hand.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from medschool.errors import InputError
from medschool.evaluate.answer import judged
from medschool.evaluate.endpoint import Endpoint, Refused
from medschool.evaluate.harness import Asked, Encode, asked, scored
from medschool.evaluate.protocol import GENERATED, Sitting, protocol_name
from medschool.exams.harness import shots_of
from medschool.exams.layout import DIRECT_INSTRUCTIONS, RATIONALE_INSTRUCTIONS, user_text
from medschool.recipe.evaluation import Exam
from medschool.rows import ExamItem

ITS_TEMPLATE = "the endpoint's own template"
REFUSED = "refused: "
REFUSALS = 8
"""So many refusals in a row, and no answer before them, are not about single items."""
Row = dict[str, Any]
Ask = Callable[[ExamItem], Row]


@dataclass(frozen=True)
class Way:
    """How an exam is sat at an endpoint."""

    name: str
    hash: str
    ask: Ask
    """One item's row: `exam`, `id`, `answer`, `chosen`, `correct`, `problem`, and `text` or `log_probs`; without the hash."""


@dataclass(frozen=True)
class Reader:
    """The served model's tokenizer, and how many tokens its context has."""

    encode: Encode
    context_tokens: int
    lock: Lock = field(default_factory=Lock)
    """Not every tokenizer bears two threads at once."""


def way(endpoint: Endpoint, spec: Exam, how: Sitting, answer_tokens: int, reader: Reader | None) -> Way:
    """How an exam of the recipe is sat there. Raises InputError where `lm_eval` has no reader."""
    if how.kind == "lm_eval":
        if reader is None:
            problem = "lm_eval asks in token ids, and no tokenizer is known"
            raise InputError(problem, "give --tokenizer FOLDER, that of the served model, with its config.json", "--tokenizer")
        known = reader
        return Way(protocol_name(spec), how.protocol("").hash, lambda item: _scored(endpoint, item, how, known))
    if how.thought_tokens is not None:
        most, instruction, protocol = how.thought_tokens, RATIONALE_INSTRUCTIONS[0], how.protocol(ITS_TEMPLATE)
    else:
        most, instruction = answer_tokens, DIRECT_INSTRUCTIONS[0]
        protocol = replace(how, written_revision=how.revision).written(ITS_TEMPLATE, answer_tokens)
    name = GENERATED if how.thought_tokens is None else protocol_name(spec)
    return Way(name, protocol.hash, lambda item: _said(item, endpoint.say(user_text(item, instruction), most)))


def _said(item: ExamItem, text: str | Refused) -> Row:
    if isinstance(text, Refused):
        return _refused(item, text) | {"text": ""}
    return judged(item, text) | {"answer": item.answer}


def _scored(endpoint: Endpoint, item: ExamItem, how: Sitting, reader: Reader) -> Row:
    with reader.lock:
        row = asked(item, reader.encode, shots_of(item, how.shots, how.shot_count), reader.context_tokens - 2)
    log_probs = ending_log_probs(endpoint, row)
    if isinstance(log_probs, Refused):
        return _refused(item, log_probs) | {"log_probs": [], "chosen_norm": None, "cut_tokens": row.cut_tokens}
    found = scored(row, log_probs)
    told = {"exam": item.exam, "id": item.id, "answer": item.answer, "correct": found.chosen == item.answer, "problem": ""}
    return told | asdict(found)


def ending_log_probs(endpoint: Endpoint, row: Asked) -> list[float] | Refused:
    """Of each ending of an item, the sum over its tokens, in nats: one request an ending. Raises as Endpoint.log_probs."""
    sums = []
    for choice in row.choices:
        for ending in choice.endings:
            found = endpoint.log_probs([*choice.prompt, *ending])
            if isinstance(found, Refused):
                return found
            sums.append(sum(found[len(choice.prompt) - 1 :]))
    return sums


def _refused(item: ExamItem, said: Refused) -> Row:
    told = {"exam": item.exam, "id": item.id, "answer": item.answer}
    return told | {"chosen": None, "correct": False, "problem": f"{REFUSED}{said.says}"}


# ---- one exam -----------------------------------------------------------------------------------------------------------------


def sit(items: Sequence[ExamItem], path: Path, how: Way, at_once: int, seen: Callable[[int], None] = lambda _: None) -> list[Row]:
    """A row for each item, in their order, which then stand in the file at `path`; those that stand there already are not asked.

    at_once: items under way. seen: called with the number of rows that are there. Raises InputError for a damaged file and where
    everything is refused; what the endpoint raises ends it, and what was answered is kept.
    """
    rows = {id_: row for id_, row in _kept(path, how.hash).items() if not is_refused(row)}
    left = [item for item in items if item.id not in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    seen(len(items) - len(left))
    with path.open("a", encoding="utf-8") as stream:
        for row in _answered(left, how, at_once, fresh=not rows):
            rows[row["id"]] = row
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()
            seen(len(rows))
    found = [rows[item.id] for item in items]
    _replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode())
    return found


def _answered(items: Sequence[ExamItem], how: Way, at_once: int, fresh: bool) -> Iterator[Row]:
    """Rows as they come. fresh: nothing was answered before, so that refusals alone are an error."""
    count = 0
    with ThreadPoolExecutor(at_once) as pool:
        waiting: set[Future[Row]] = set()
        left = iter(items)
        try:
            while True:
                waiting |= {pool.submit(how.ask, item) for _, item in zip(range(at_once - len(waiting)), left, strict=False)}
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for row in [one.result() | {"protocol": how.hash} for one in done]:
                    count += 1
                    fresh = fresh and is_refused(row)
                    if fresh and count >= min(REFUSALS, len(items)):
                        problem = f"{count} items were {row['problem']}; none was answered"
                        raise InputError(problem, "mend what it says, and run again", row["id"])
                    yield row
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def is_refused(row: Row) -> bool:
    """Whether the endpoint would not answer this item."""
    return bool(row["problem"].startswith(REFUSED))


def _kept(path: Path, protocol: str) -> dict[str, Row]:
    """Rows of an earlier run by id. What stands behind the last line end was cut off when that run was killed, and goes."""
    if not path.exists():
        return {}
    whole, ended, cut = path.read_bytes().rpartition(b"\n")
    if cut:
        _replace(path, whole + ended)
    found = {}
    for number, line in enumerate(whole.split(b"\n") if ended else [], start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"not JSON ({error})", "delete the line; its item is asked again", f"{path}:{number}") from error
        if not isinstance(row, dict) or row.get("protocol") != protocol or not {"id", "problem", "correct"} <= row.keys():
            raise InputError("not a row of this exam and protocol", "delete the line", f"{path}:{number}")
        found[row["id"]] = row
    return found


def _replace(path: Path, data: bytes) -> None:
    whole = path.with_name(path.name + ".new")
    whole.write_bytes(data)
    os.replace(whole, path)

"""The part of a set that a teacher writes: reasons for exam questions, or other wordings of instructions.

    exam questions --to_explain--> conversations without reasons --checked, drawn--asked--> with reasons, or dropped
                                   conversations of any maker -----checked, drawn--asked--> under other wordings

`asked` comes last, when it is known which conversations are kept: nothing is paid for what is dropped anyway. It gives one row
for each row, in their order, so that a caller can tell which is which by counting. WINDOW rows a thread are in memory.

Everything a teacher answered lies in the store (answers.py): asking again costs nothing, and gives the same rows.

Price: the teacher's. 10,000 questions of 250 tokens with 200 tokens of reasons are 4.5 million tokens; at 8 requests at once,
of 4 s each, they take an hour and a half.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import Literal, TypeAlias

from medschool.errors import StageError
from medschool.exams.layout import RATIONALE_INSTRUCTIONS, letter, parse_answer
from medschool.exams.records import paragraphs
from medschool.instructions import reasons, wordings
from medschool.instructions.answers import Answer
from medschool.instructions.endpoint import Fault
from medschool.instructions.spending import Ledger, OverBudget
from medschool.instructions.teacher import Client
from medschool.recipe.instructions import Teacher
from medschool.rows import Conversation, Dropped, LeftOut, Message
from medschool.seed import seed_of

Ask: TypeAlias = Literal["rationale_general", "rationale_options", "paraphrase"]
"""As the recipe's `instructions.<set>.ask`."""
Do: TypeAlias = Callable[[int, Conversation], Conversation | Dropped]
"""What is done with a row and its number."""
EXPLAINS = ("rationale_general", "rationale_options")
WINDOW = 16
SAMPLE_CHARS = 200
_NO_REASONS = "###Rationale: \n"


def to_explain(rows: Iterable[Conversation | Dropped | LeftOut], seed: int) -> Iterator[Conversation | Dropped | LeftOut]:
    """Of what a maker of exam questions yields: each question once, as exam.with_rationale makes it, its rationale still empty.

    Ids are `<id of the item>:rationale`. Other conversations are no part of it, and neither is what is said of a shuffled twin.
    """
    for row in rows:
        if isinstance(row, Conversation):
            if row.kind == "exam" and row.id.endswith(":direct"):
                yield _unexplained(row, seed)
        elif not isinstance(row, Dropped) or row.step != "fixed_order":
            yield row


def _unexplained(row: Conversation, seed: int) -> Conversation:
    item, question = row.id.removesuffix(":direct"), row.messages[0].content.partition("\n\n")[2]
    instruction = RATIONALE_INSTRUCTIONS[seed_of(seed, item) % len(RATIONALE_INSTRUCTIONS)]
    messages = (Message("user", f"{instruction}\n\n{question}"), Message("assistant", _NO_REASONS + row.messages[-1].content))
    return replace(row, id=f"{item}:rationale", kind="rationale", messages=messages)


def asked(
    rows: Iterable[Conversation], ask: Ask, teacher: Teacher, seed: int, cache_uri: str, ledger: Ledger
) -> Iterator[Conversation | Dropped]:
    """One row for each of `rows`, in their order, with what the teacher adds. cache_uri: folder of the answers in the store.

    A question without reasons that agree with its key is Dropped: `no_agreement`, or `unanswered` where nothing came. One call
    asks for a whole set, because teacher.concurrency and the budget are those of the call. Raises StageError when the budget
    does not allow the next request, ServiceError when the teacher is down.
    """
    left = iter(rows)
    waiting: deque[Future[Conversation | Dropped]] = deque()
    with Client(teacher, cache_uri, ledger) as client, ThreadPoolExecutor(teacher.concurrency) as pool:
        do = _wordings(client, seed) if ask == "paraphrase" else _reasons(client, ask)
        try:
            for number, row in enumerate(left):
                waiting.append(pool.submit(_done, do, number, row, ledger))
                if len(waiting) == WINDOW * teacher.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except OverBudget:
            client.stop()
            pool.shutdown(cancel_futures=True)
            open_rows = 1 + sum(row.cancelled() or row.exception() is not None for row in waiting) + sum(1 for _ in left)
            raise _over_budget(teacher, ledger, open_rows) from None
        finally:
            client.stop()
            pool.shutdown(cancel_futures=True)


def _done(do: Do, number: int, row: Conversation, ledger: Ledger) -> Conversation | Dropped:
    try:
        return do(number, row)
    finally:
        ledger.is_read(number)


def _over_budget(teacher: Teacher, ledger: Ledger, open_rows: int) -> StageError:
    done = ledger.counts["asked"]
    share = f", about {ledger.spent_tokens * open_rows // done} tokens more" if done else ""
    return StageError(
        f"{ledger.spent_tokens} tokens are spent of the budget of {teacher.budget_tokens}, and the next request could pass it; "
        f"{open_rows} rows are left to ask{share}",
        "raise teacher.budget_tokens, or lower `conversations`; what was answered is kept and costs nothing again",
        "teacher.budget_tokens",
    )


# ---- reasons ------------------------------------------------------------------------------------------------------------------


def _reasons(client: Client, ask: Ask) -> Do:
    way: reasons.Way = "general" if ask == "rationale_general" else "options"
    return lambda number, row: _explained(number, row, client, way)


def _explained(number: int, row: Conversation, client: Client, way: reasons.Way) -> Conversation | Dropped:
    """The question with the first rationale that agrees with its key."""
    question, options, key = _question(row)
    text, seen = _agreeing(
        client.answers(reasons.prompt(way, question, options, key), number), way, len(options), key, client.ledger
    )
    client.ledger.add("asked")
    if text:
        client.ledger.add("accepted")
        last = row.messages[-1]
        reply = replace(last, content=last.content.replace(_NO_REASONS, f"###Rationale: {text}\n", 1))
        return replace(row, messages=(*row.messages[:-1], reply))
    step = "no_agreement" if any(answered for _, answered in seen) else "unanswered"
    reason = f"the key is {letter(key)}, the teacher said: {'; '.join(said for said, _ in seen)}"
    return Dropped(row.id, row.source, step, reason, question[:SAMPLE_CHARS], row.uri)


def _agreeing(
    answers: Iterable[Answer | Fault], way: reasons.Way, options: int, key: int, ledger: Ledger
) -> tuple[str, list[tuple[str, bool]]]:
    """The first rationale that agrees, or ''; and what each try said, and whether that was an answer."""
    seen: list[tuple[str, bool]] = []
    for found in answers:
        if isinstance(found, Fault):
            seen.append((f"refused, {found.says}" if found.kind == "refused" else found.kind, False))
            continue
        text = paragraphs(found.text)
        said = "cut off" if not found.whole else reasons.verdict(way, text, options) if text else "nothing"
        agrees = said == letter(key) and parse_answer(text, options) in (None, key)
        ledger.judge("agreed" if agrees else said if said in ("cut off", "nothing", "none") else "other")
        seen.append((said, True))
        if agrees:
            return text, seen
    return "", seen


def _question(row: Conversation) -> tuple[str, tuple[str, ...], int]:
    """Question with its options as text, the options, the index of the right one: the layout of exams/layout.py, read back."""
    question = row.messages[0].content.partition("\n\n")[2].rstrip("\n")
    lines = question.rpartition("###Options:\n")[2].split("\n")
    key = parse_answer(row.messages[-1].content, len(lines))
    assert key is not None and row.messages[-1].content.startswith(_NO_REASONS), row.id
    return question, tuple(line[3:] for line in lines), key


# ---- wordings -----------------------------------------------------------------------------------------------------------------


def _wordings(client: Client, seed: int) -> Do:
    """Each distinct instruction is asked about once; other threads that meet it wait for the one that asks."""
    known: dict[str, Future[tuple[str, ...]]] = {}
    lock = Lock()

    def of(instruction: str, number: int) -> tuple[str, ...]:
        with lock:
            mine = instruction not in known
            found = known.setdefault(instruction, Future())
        if mine:
            try:
                found.set_result(_base(client, instruction, number))
            except BaseException as error:
                found.set_exception(error)
        client.ledger.is_read(number)
        return found.result()

    def reworded(number: int, row: Conversation) -> Conversation:
        place, instruction = _instruction(row)
        if not instruction:
            return row
        base, turn = of(instruction, number), row.messages[place]
        chosen = base[seed_of(seed, row.id, "wording") % len(base)]
        said = Message(turn.role, chosen + turn.content[len(instruction) :])
        return replace(row, messages=(*row.messages[:place], said, *row.messages[place + 1 :]))

    return reworded


def _instruction(row: Conversation) -> tuple[int, str]:
    """Where the first user turn is, and what it says before its first blank line; '' where it has none: it is all question."""
    place = next(place for place, message in enumerate(row.messages) if message.role == "user")
    head, blank, _ = row.messages[place].content.partition("\n\n")
    return place, head if blank else ""


def _base(client: Client, instruction: str, number: int) -> tuple[str, ...]:
    """The instruction itself, and up to teacher.paraphrases other wordings of it."""
    wanted = client.teacher.paraphrases
    kept: list[str] = []
    for found in client.answers(wordings.prompt(instruction, wanted), number):
        if isinstance(found, Fault):
            continue
        lines = wordings.lines_of(found.text)
        for line in lines if found.whole else lines[:-1]:
            judgement = wordings.verdict(instruction, line, kept)
            client.ledger.judge(judgement)
            if judgement == "kept":
                kept.append(line)
        if len(kept) >= wanted:
            break
    client.ledger.add("asked")
    client.ledger.add("accepted", bool(kept))
    return (instruction, *kept[:wanted])

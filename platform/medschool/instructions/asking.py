"""The kept portions of a set go through the teacher, and come out as portions.

    conversations/00007.parquet, dropped/00007.parquet --asked, checked again--> conversations/00007-asked.parquet
                                                                                 dropped/00007-asked.parquet

All portions go through one process, one after the other, because the bounds of the teacher (requests at once, budget) are those
of the whole set. What the teacher wrote is held against the same terms as everything else: it may have recited an exam.

It only waits: one process sends hundreds of requests a second. Memory: one portion, and the window of medschool.instructions.ask.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from medschool import storage
from medschool.artifact import write_parquet
from medschool.instructions.ask import Ask, asked
from medschool.instructions.check import Kept
from medschool.instructions.spending import Ledger
from medschool.recipe.instructions import Teacher
from medschool.rows import CONVERSATION_SCHEMA, DROPPED_SCHEMA, Conversation, Dropped, Message, table

Check = Callable[[dict[str, Any]], Dropped | None]
"""Why a conversation, as the values of its row, may not be trained on; None where it may."""


def ask_portions(
    portions: Sequence[Kept], ask: Ask, teacher: Teacher, seed: int, check: Check, prefix_uri: str, cache_uri: str
) -> tuple[list[Kept], dict[str, Any]]:
    """The portions with what the teacher adds, and what it cost (Ledger.facts). Raises as `asked`.

    cache_uri: folder of all answers, shared by all sets and attempts. The files of `portions` stay, so that it may run twice.
    """
    ledger = Ledger(teacher)
    rows = asked(_rows(portions, prefix_uri), ask, teacher, seed, cache_uri, ledger)
    return [_portion(portion, rows, check, prefix_uri) for portion in portions], ledger.facts()


def _rows(portions: Sequence[Kept], prefix_uri: str) -> Iterator[Conversation]:
    for portion in portions:
        for row in storage.read_parquet(storage.join(prefix_uri, portion.files[0].path)).to_pylist():
            yield Conversation(**row | {"messages": tuple(Message(**message) for message in row["messages"])})


def _portion(portion: Kept, rows: Iterator[Conversation | Dropped], check: Check, prefix_uri: str) -> Kept:
    """One portion: the next rows, as many as it had conversations."""
    found = [next(rows) for _ in range(portion.conversations)]
    judged = [row if isinstance(row, Dropped) else check(asdict(row)) or row for row in found]
    kept = [row for row in judged if isinstance(row, Conversation)]
    lost = [row for row in judged if isinstance(row, Dropped)]
    before = storage.read_parquet(storage.join(prefix_uri, portion.files[1].path))
    paths = [file.path.replace(".parquet", "-asked.parquet") for file in portion.files]
    return replace(
        portion,
        files=(
            write_parquet(prefix_uri, paths[0], table(kept, CONVERSATION_SCHEMA)),
            write_parquet(prefix_uri, paths[1], pa.concat_tables([before, table(lost, DROPPED_SCHEMA)])),
        ),
        conversations=len(kept),
        kinds=Counter(row.kind for row in kept),
        licences=Counter(row.licence for row in kept),
        dropped=portion.dropped + Counter(row.step for row in lost),
    )

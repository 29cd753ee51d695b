"""Talks of several turns in the layout of ShareGPT, as HuatuoGPT-II and many others pass theirs on.

    {"id": "7", "conversations": [{"from": "human", "value": "My knee hurts."}, {"from": "gpt", "value": "Since when?"}, ...]}

All turns are kept. A turn of the system may come first; then human and gpt alternate, and gpt has the last word. In columns the
turns may also be one struct of two lists, as `datasets` keeps a sequence of records.
"""

from collections.abc import Mapping
from typing import Any

from medschool.instructions.fields import malformed, text_of
from medschool.rows import Message

ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
NAMES = {role: name for name, role in ROLES.items()}
TURNS = ("user", "assistant")


def sharegpt(values: Mapping[str, Any]) -> tuple[str, tuple[Message, ...]]:
    """The messages of one talk. Raises Refused, with the number of the turn from 1, for one that nobody can learn from."""
    messages = tuple(_message(turn, f"conversations[{number}]") for number, turn in enumerate(_turns(values), start=1))
    first = 1 if messages[0].role == "system" else 0
    talk = messages[first:]
    for place, message in enumerate(talk):
        if message.role != TURNS[place % 2]:
            found, wanted = (NAMES[role] for role in (message.role, TURNS[place % 2]))
            raise malformed(f"conversations[{first + place + 1}] is from {found}, where {wanted} has its turn")
    if not talk or talk[-1].role != "assistant":
        raise malformed("conversations does not end with gpt")
    return "conversation", messages


def _turns(values: Mapping[str, Any]) -> list[Any]:
    found = values.get("conversations")
    if isinstance(found, dict) and all(isinstance(found.get(key), list) for key in ("from", "value")):
        found = [{"from": who, "value": what} for who, what in zip(found["from"], found["value"], strict=False)]
    if not isinstance(found, list) or not found:
        raise malformed(f"conversations is {found!r:.60}, not a list of turns")
    return found


def _message(turn: Any, at: str) -> Message:
    if not isinstance(turn, dict):
        raise malformed(f"{at} is {turn!r:.60}, not an object")
    who = text_of(turn, "from", f"{at}.")
    if who not in ROLES:
        raise malformed(f"{at}.from is {who!r:.60}, not one of {', '.join(ROLES)}")
    return Message(ROLES[who], text_of(turn, "value", f"{at}."))

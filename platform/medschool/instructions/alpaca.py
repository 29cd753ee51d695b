"""Records {instruction, input, output}, as Stanford Alpaca wrote them and most medical sets since.

    {"instruction": "Answer the patient.", "input": "My knee hurts.", "output": "Rest it."}

So come ChatDoctor's HealthCareMagic-100k, chatdoctor5k (GenMedGPT) and Medical Meadow. `input` may be missing, null or empty, as
in Alpaca's own script. ChatDoctor's iCliniq has several answers, `answer_icliniq`, `answer_chatgpt` and `answer_chatdoctor`, and
no `output`: the doctor's is taken, and there the instruction may be missing, because the patient's words are the question.

That instruction and output were swapped cannot be seen in free text, but where the words of an exam's layout stand it can:
`###Answer:` in what the user says, or `###Question:` in what the assistant says.
"""

from collections.abc import Mapping
from typing import Any

from medschool.instructions.fields import malformed, optional_text, text_of, user_turn
from medschool.rows import Message

COLUMNS = ("instruction", "input", "output", "answer_icliniq")
ANSWERS = ("answer_icliniq", "output")
"""Keys of the answer; the first one that a record has counts."""


def alpaca(values: Mapping[str, Any]) -> tuple[str, tuple[Message, ...]]:
    """The messages of one record. Raises Refused."""
    return "conversation", alpaca_messages(values)


def alpaca_messages(values: Mapping[str, Any]) -> tuple[Message, Message]:
    """What the user says and what the assistant says. Raises Refused, with the key, for what is missing, empty or no text."""
    key = next((key for key in ANSWERS if values.get(key) is not None), ANSWERS[-1])
    given = optional_text(values, "input")
    may_lack = key == "answer_icliniq" and given
    instruction = optional_text(values, "instruction") if may_lack else text_of(values, "instruction")
    output = text_of(values, key)
    if "###Question:" in output or "###Answer:" in instruction or "###Answer:" in given:
        raise malformed(f"instruction or input and {key} are swapped: the question stands in the answer, or the answer before it")
    return Message("user", user_turn(instruction, given)), Message("assistant", output)

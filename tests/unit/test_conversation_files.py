"""Files of ready conversations: every layout in every container, good and broken. All texts here are invented."""

import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.corpus import jsonstream
from medschool.errors import InputError
from medschool.instructions.fields import TURN_CHARS
from medschool.instructions.formats import INSTRUCTION_FORMATS, subject_of
from medschool.rows import Conversation, Dropped

Record = dict[str, Any]
Row = Conversation | Dropped


def make(name: str, data: bytes) -> list[Row]:
    return list(INSTRUCTION_FORMATS[name](io.BytesIO(data), "raw/f.json", "set", 7))  # type: ignore[arg-type]


def as_array(records: list[Record]) -> bytes:
    return json.dumps(records, indent=1).encode()


def as_lines(records: list[Record]) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


def as_parquet(records: list[Record]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


def as_arrow(records: list[Record]) -> bytes:
    rows, sink = pa.Table.from_pylist(records), io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue()


CONTAINERS: list[tuple[str, Callable[[list[Record]], bytes]]] = [
    ("", as_array),
    ("", as_lines),
    ("_parquet", as_parquet),
    ("_datasets", as_arrow),
]
ALPACA: Record = {"instruction": "Answer the\n\npatient.", "input": "My tin knee squeaks.", "output": "Oil it."}
EXAM_INPUT = "###Question: What is red?\n###Options:\nA. Iron\nB. Rust\n"
MEDC_I: Record = {
    "instruction": "Choose.", "input": EXAM_INPUT, "output": "###Answer: OPTION B IS CORRECT.", "source": "medmcqa", "sample_id": None,
}  # fmt: skip
TALK: Record = {
    "id": "7",
    "conversations": [{"from": "human", "value": "It squeaks."}, {"from": "gpt", "value": "Since when?"}] * 2,
}
MEDQUAD: Record = {
    "src": "X",
    "url": "u",
    "focus": "Rust",
    "qtype": "cause",
    "question": "What is  rust ?",
    "answer": "Iron.\n\n  Wet  iron.",
}
GOOD: dict[str, Record] = {"alpaca": ALPACA, "medc_i": MEDC_I, "sharegpt": TALK, "medquad": MEDQUAD}


def talk(row: Row) -> list[tuple[str, str]]:
    assert isinstance(row, Conversation), row
    return [(message.role, message.content) for message in row.messages]


def reasons(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.step, row.reason) for row in rows if isinstance(row, Dropped)]


@pytest.mark.parametrize(("suffix", "write"), CONTAINERS)
@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_layout_reads_the_same_from_every_container(name: str, suffix: str, write: Callable[[list[Record]], bytes]) -> None:
    rows = make(name + suffix, write([GOOD[name]] * 3))
    assert [row.id for row in rows] == ["raw/f.json:1", "raw/f.json:2", "raw/f.json:3"]
    assert [talk(row) for row in rows] == [talk(make(name, as_lines([GOOD[name]]))[0])] * 3
    assert all(row.uri == "raw/f.json" and row.source == "set" and subject_of(row) is None for row in rows)


def test_what_is_said_by_whom() -> None:
    (row,) = make("alpaca", as_array([ALPACA]))
    assert talk(row) == [("user", "Answer the\npatient.\n\nMy tin knee squeaks."), ("assistant", "Oil it.")]
    assert (row.kind, row.licence) == ("conversation", "unstated")  # type: ignore[union-attr]
    (row,) = make("sharegpt", as_array([TALK]))
    assert talk(row) == [("user", "It squeaks."), ("assistant", "Since when?")] * 2
    (row,) = make("sharegpt", as_array([{"conversations": [{"from": "system", "value": "S"}, *TALK["conversations"]]}]))
    assert talk(row)[0] == ("system", "S") and len(talk(row)) == 5
    (row,) = make("medquad", as_lines([MEDQUAD]))
    assert talk(row) == [("user", "What is rust ?"), ("assistant", "Iron.\nWet iron.")] and row.licence == "cc-by"  # type: ignore[union-attr]


@pytest.mark.parametrize("given_", [{}, {"input": None}, {"input": ""}, {"input": " \n"}])
def test_an_instruction_may_stand_alone(given_: Record) -> None:
    (row,) = make("alpaca", as_array([{"instruction": "What is rust?", "output": "Iron."} | given_]))
    assert talk(row)[0] == ("user", "What is rust?")


def test_the_doctor_s_answer_is_taken_of_several() -> None:
    answers = {"answer_icliniq": "Oil it.", "answer_chatgpt": "Paint it.", "answer_chatdoctor": "Sell it."}
    (row,) = make("alpaca", as_array([{"input": "It squeaks."} | answers]))
    assert talk(row) == [("user", "It squeaks."), ("assistant", "Oil it.")]
    (row,) = make("alpaca", as_array([{"instruction": "Answer.", "input": "It squeaks."} | answers]))
    assert talk(row)[0][1] == "Answer.\n\nIt squeaks."


@pytest.mark.parametrize(
    ("source", "output", "kind"),
    [
        ("medqa_train", "###Answer: OPTION A IS CORRECT.", "exam"),
        ("medmcqa", "###Rationale: It rusts.\n###Answer: OPTION B IS CORRECT.", "rationale"),
        ("pubmedqa.ori_pqaa", "It was red.", "conversation"),
        ("liveqa", "It is.", "conversation"),
        ("medicationqa", "It is.", "conversation"),
        ("umls", "Red iron.", "graph"),
        ("umls_relation", "is a", "graph"),
    ],
)
def test_the_source_of_medc_i_decides_the_kind(source: str, output: str, kind: str) -> None:
    (row,) = make("medc_i", as_array([MEDC_I | {"source": source, "output": output}]))
    assert isinstance(row, Conversation) and (row.kind, row.licence) == (kind, "openrail")


BAD: list[tuple[str, Record, str, str]] = [
    ("alpaca", {"instruction": "", "input": "x", "output": "y"}, "malformed", "instruction is empty"),
    ("alpaca", {"input": "x", "output": "y"}, "malformed", "instruction is missing"),
    ("alpaca", {"instruction": "x"}, "malformed", "output is missing"),
    ("alpaca", {"instruction": "x", "output": " \n"}, "malformed", "output is empty"),
    ("alpaca", {"instruction": "x", "output": None}, "malformed", "output is None, not text"),
    ("alpaca", {"instruction": ["x"], "output": "y"}, "malformed", "instruction is ['x'], not text"),
    ("alpaca", {"instruction": "x", "input": 3, "output": "y"}, "malformed", "input is 3, not text"),
    ("alpaca", {"instruction": "x", "output": "a\0b"}, "malformed", "output holds a NUL character"),
    ("alpaca", {"instruction": "x", "output": "a" * (TURN_CHARS + 1)}, "too_long", f"output has {TURN_CHARS + 1} characters, a turn has at most {TURN_CHARS}"),
    ("alpaca", {"instruction": "x", "output": EXAM_INPUT}, "malformed", "instruction or input and output are swapped: the question stands in the answer, or the answer before it"),
    ("alpaca", {"input": "x", "answer_icliniq": ""}, "malformed", "answer_icliniq is empty"),
    ("medc_i", MEDC_I | {"source": "usmle"}, "malformed", "source is 'usmle', not one of medqa_train, medmcqa, pubmedqa.ori_pqaa, liveqa, medicationqa, umls, umls_relation"),
    ("medc_i", {key: MEDC_I[key] for key in ("instruction", "input", "output")}, "malformed", "source is missing"),
    ("medc_i", MEDC_I | {"output": "###Answer: OPTION C IS CORRECT."}, "malformed", "output names option C, the input has A, B"),
    ("medc_i", MEDC_I | {"output": "B"}, "malformed", "output names no option as correct, as in `###Answer: OPTION B IS CORRECT.`"),
    ("medc_i", MEDC_I | {"input": MEDC_I["output"], "output": EXAM_INPUT}, "malformed", "instruction or input and output are swapped: the question stands in the answer, or the answer before it"),
    ("sharegpt", {"id": "1"}, "malformed", "conversations is None, not a list of turns"),
    ("sharegpt", {"conversations": []}, "malformed", "conversations is [], not a list of turns"),
    ("sharegpt", {"conversations": ["x"]}, "malformed", "conversations[1] is 'x', not an object"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "x"}]}, "malformed", "conversations does not end with gpt"),
    ("sharegpt", {"conversations": [{"from": "system", "value": "x"}]}, "malformed", "conversations does not end with gpt"),
    ("sharegpt", {"conversations": [{"from": "gpt", "value": "x"}]}, "malformed", "conversations[1] is from gpt, where human has its turn"),
    ("sharegpt", {"conversations": [{"from": "system", "value": "x"}, {"from": "gpt", "value": "x"}]}, "malformed", "conversations[2] is from gpt, where human has its turn"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "x"}, {"from": "human", "value": "x"}]}, "malformed", "conversations[2] is from human, where gpt has its turn"),
    ("sharegpt", {"conversations": [{"from": "bot", "value": "x"}]}, "malformed", "conversations[1].from is 'bot', not one of system, human, gpt"),
    ("sharegpt", {"conversations": [{"from": "human"}]}, "malformed", "conversations[1].value is missing"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}]}, "malformed", "conversations[2].value is empty"),
    ("medquad", MEDQUAD | {"answer": ""}, "no_answer", "the answer to 'What is rust ?' is not passed on"),
    ("medquad", MEDQUAD | {"answer": None}, "no_answer", "the answer to 'What is rust ?' is not passed on"),
    ("medquad", MEDQUAD | {"question": ""}, "malformed", "question is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record", "step", "reason"), BAD)
def test_a_record_that_nobody_can_learn_from_is_dropped_with_its_place_and_key(
    name: str, record: Record, step: str, reason: str
) -> None:
    for write, word in ((as_array, "element"), (as_lines, "line")):
        rows = make(name, write([GOOD[name], record, GOOD[name]]))
        assert reasons(rows) == [(step, f"{word} 2: {reason}")] and len(rows) == 3
        assert rows[1].id == "raw/f.json:2" and rows[1].uri == "raw/f.json"


BROKEN = [
    (b'{"instruction": "\xe2(", "output": "y"}', "can't decode byte"),
    (b'{"instruction": "a\0b", "output": "y"}', "holds a NUL byte"),
    (b'{"instruction": "a\x07b", "output": "y"}', "Invalid control character"),
    (b'{"instruction": "\\ud83d", "output": "y"}', "holds half a character"),
    (b'{"instruction": "\\ude00", "output": "y"}', "holds half a character"),
    (b'{"instruction": "x", "output": "y", "output": "z"}', "names the key 'output' twice"),
    (b'{"instruction": "x", "output": NaN}', "holds NaN"),
    (b"[1]", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b"12", "not a JSON object"),
]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 2**20])
@pytest.mark.parametrize(("broken", "reason"), BROKEN)
def test_a_broken_record_of_an_array_spoils_no_other(
    broken: bytes, reason: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonstream, "CHUNK_BYTES", chunk_bytes)
    good = json.dumps(ALPACA).encode()
    rows = make("alpaca", b"\xef\xbb\xbf [" + good + b" ,\n" + broken + b"\n, " + good + b"]\n")
    assert [type(row) for row in rows] == [Conversation, Dropped, Conversation] and [row.id for row in rows][2] == "raw/f.json:3"
    ((step, why),) = reasons(rows)
    assert step == "malformed" and why.startswith("element 2: ") and reason in why


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[", "the file ends too early"),
        (b"[]", "the array is empty"),
        (b'[{"a": 1}', "the file ends too early"),
        (b'[{"a": 1},', "the file ends too early"),
        (b'[{"a": 1}, nul', "Expecting value"),
        (b'[{"a": 1} {"a": 1}]', "'{' in place of ',' or ']'"),
        (b'[{"a": 1}]\n\n x', "'x' behind the end"),
        (b'[\n\n{"a": "b" "c"}]', "Expecting ',' delimiter"),
        (b"[" * 100_000, ""),
        (b"", "empty"),
    ],
)
def test_an_array_that_breaks_off_is_an_error_with_its_line(data: bytes, problem: str) -> None:
    with pytest.raises(InputError) as raised:
        make("alpaca", data)
    assert problem in raised.value.problem and raised.value.where.startswith("raw/f.json")
    if data.count(b"\n"):
        assert raised.value.where == "raw/f.json:3"


@pytest.mark.parametrize("suffix", ["_parquet", "_datasets"])
def test_a_table_of_something_else_is_an_error(suffix: str) -> None:
    write = dict(CONTAINERS[2:])[suffix]
    with pytest.raises(InputError, match="has no column `answer_icliniq` or `output`, but text"):
        make(f"alpaca{suffix}", write([{"text": "x"}]))
    with pytest.raises(InputError, match=r"raw/f\.json"):
        make(f"alpaca{suffix}", write([ALPACA] * 9)[:-20])


def test_rows_of_a_table_are_judged_one_by_one() -> None:
    rows = make("alpaca_parquet", as_parquet([ALPACA, ALPACA | {"output": ""}, ALPACA | {"output": None}]))
    assert reasons(rows) == [("malformed", "row 2: output is empty"), ("malformed", "row 3: output is None, not text")]
    texts = pa.array([b"good", b"bad \xff"]).view(pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table({"instruction": texts, "output": ["x", "y"]}), sink)
    first, second = make("alpaca_parquet", sink.getvalue())
    assert isinstance(first, Conversation) and isinstance(second, Dropped) and "decode" in second.reason


def test_turns_of_a_dataset_may_be_a_struct_of_lists() -> None:
    turns = {key: [turn[key] for turn in TALK["conversations"]] for key in ("from", "value")}
    (row,) = make("sharegpt_datasets", as_arrow([{"conversations": turns}]))
    assert talk(row) == talk(make("sharegpt", as_array([TALK]))[0])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda value: st.lists(value, max_size=2),
)
RECORDS = st.lists(
    st.dictionaries(
        st.sampled_from(["instruction", "input", "output", "source", "conversations", "question", "answer"]), JSON, max_size=5
    )
    | JSON,
    min_size=1,
    max_size=6,
)


@given(RECORDS, st.sampled_from(sorted(GOOD)))
@settings(max_examples=60, deadline=None)
def test_every_record_becomes_one_row(records: list[Any], name: str) -> None:
    rows = make(name, json.dumps(records).encode())
    assert [row.id for row in rows] == [f"raw/f.json:{number}" for number in range(1, len(records) + 1)]


@given(
    st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), min_size=1, max_size=6),
    st.integers(1, 30),
    st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_elements_are_what_json_itself_finds(records: list[Any], chunk_bytes: int, indent: int) -> None:
    data = json.dumps(records, indent=indent or None, ensure_ascii=bool(indent)).encode("utf-8", "replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonstream, "CHUNK_BYTES", chunk_bytes)
        assert [json.loads(text) for text in jsonstream.array_items(io.BytesIO(data), "f")] == json.loads(data)


# ---- PubMedQA -----------------------------------------------------------------------------------------------------------------

ABSTRACT: Record = {
    "QUESTION": "Is it\nred?",
    "CONTEXTS": ["It was  wet.", "It rusted."],
    "LONG_ANSWER": "It is\nred.",
    "final_decision": "yes",
}


def test_an_abstract_answers_in_its_own_words_and_is_named() -> None:
    (row,) = make("pubmedqa_answer", json.dumps({"17": ABSTRACT}).encode())
    (_, user), (_, assistant) = talk(row)
    assert (
        user.partition("\n\n")[2] == "###Context: It was wet.\nIt rusted.\n###Question: Is it red?\n"
        and assistant == "It is red."
    )
    assert isinstance(row, Conversation)
    assert (row.id, row.document, row.kind, row.licence) == ("pmid:17:answer", "pmid:17", "conversation", "mit")


@pytest.mark.parametrize(
    ("record", "step", "reason"),
    [
        (ABSTRACT | {"LONG_ANSWER": ""}, "no_answer", "LONG_ANSWER is missing or empty"),
        (ABSTRACT | {"LONG_ANSWER": 3}, "malformed", "LONG_ANSWER is 3, not text"),
        (ABSTRACT | {"QUESTION": None}, "malformed", "QUESTION is None, not text"),
        (ABSTRACT | {"CONTEXTS": "x"}, "malformed", "CONTEXTS is 'x', not a list of texts"),
        (ABSTRACT | {"CONTEXTS": ["x", 3]}, "malformed", "CONTEXTS[1] is 3, not text"),
        (
            ABSTRACT | {"CONTEXTS": ["x" * 60_000] * 2},
            "too_long",
            f"CONTEXTS has 120000 characters, a turn has at most {TURN_CHARS}",
        ),
        (["x"], "malformed", "not a JSON object"),
    ],
)
def test_a_record_of_pubmedqa_that_cannot_be_used_is_dropped(record: Any, step: str, reason: str) -> None:
    rows = make("pubmedqa_answer", json.dumps({"1": record, "2": ABSTRACT}).encode())
    assert reasons(rows) == [(step, f"record 1: {reason}")] and len(rows) == 2 and subject_of(rows[0]) is None


def test_a_pmid_counts_once_and_an_array_is_no_pubmedqa() -> None:
    once = json.dumps(ABSTRACT)
    for name, made in (("pubmedqa_answer", 1), ("pubmedqa", 2)):
        rows = make(name, f'{{"1": {once}, "1": {once}}}'.encode())
        assert reasons(rows) == [("malformed", "record 1: the file has this PMID twice")] and len(rows) == made + 1
        with pytest.raises(InputError, match="in place of"):
            make(name, as_array([ABSTRACT]))

"""The chats stage on Ray: cut, masked and packed by what the recipe says, and stopped by the contract."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from templates import CHATML, save_tokenizer
from tiny import RECIPE

from medschool.artifact import Artifact, ArtifactFile, Output, write_parquet
from medschool.errors import StageError
from medschool.instructions.on_ray import make_chats
from medschool.instructions.template import ChatTemplate
from medschool.recipe import load
from medschool.rows import CONVERSATION_SCHEMA, Conversation, Message, table
from medschool.storage import sha256_file
from medschool.trace.mask import first_rows

QUESTION = "Pick one.\n\n###Question: a?\n###Options:\nA. b\nB. d\nC. r\n"


def artifact(stage: str, folder: Path, files: tuple[ArtifactFile, ...]) -> Artifact:
    return Artifact(stage, "f", "m", str(folder), files, {}, {}, 0.0)


def chats(tmp_path: Path, conversations: list[Conversation], *overrides: str) -> tuple[Output, Artifact, Path]:
    """The stage on two parts of conversations, its artifact, and the tokenizer's folder."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    made, prefix, tokenizer = tmp_path / "instructions", tmp_path / "chats", tmp_path / "tokenizer"
    parts = [conversations[::2], conversations[1::2]]
    files = tuple(
        write_parquet(str(made), f"conversations/{number:05}.parquet", table(part, CONVERSATION_SCHEMA))
        for number, part in enumerate(parts)
    )
    save_tokenizer(tokenizer, CHATML, "</s>")
    tools = tuple(ArtifactFile(path.name, path.stat().st_size, sha256_file(path)) for path in sorted(tokenizer.iterdir()))
    output = make_chats(
        load(recipe, list(overrides)),
        artifact("instructions/set", made, files),
        {},
        artifact("tokenizer", tokenizer, tools),
        str(prefix),
    )
    return output, artifact("chats/set", prefix, output.files), tokenizer


def conversation(number: int, *texts: str, kind: str = "conversation") -> Conversation:
    roles = ("user", "assistant") * len(texts)
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))
    return Conversation(f"c{number}", "set", kind, messages, "mit", "raw/f")


def test_the_papers_template_cut_to_the_row_with_its_last_answers_trained(ray_cluster: None, tmp_path: Path) -> None:
    answers = {f"c{number}": f"###Answer: OPTION {'ABC'[number % 3]} IS CORRECT." for number in range(30)}
    conversations = [conversation(number, "a", "first", QUESTION, answers[f"c{number}"], kind="exam") for number in range(30)]
    conversations += [conversation(30, "a " * 400, "b", "Say.\n\n" + "rd " * 400, "the end"), conversation(31, "a", " ")]
    output, made, tokenizer = chats(
        tmp_path,
        conversations,
        "chats.template=pmc_llama",
        "chats.too_long=truncate",
        "chats.trained_turns=last",
        "chats.row_tokens=512",
    )
    template = ChatTemplate(tokenizer, "pmc_llama")
    rows = first_rows(made, lambda ids: str(template._raw.decode(list(ids))), 99)
    spoken = {
        piece.conversation: "".join(token.text for token in piece.tokens if token.trained)
        for row in rows
        for piece in row.pieces
        if piece.conversation
    }
    assert spoken == {id_: f"{answer}</s>" for id_, answer in {**answers, "c30": "the end"}.items()}
    facts = output.facts
    assert facts["dropped"] == {"heldout": 0, "refused": 0, "no_answer": 1, "too_long": 0}
    assert facts["truncated"]["conversations"] == 1 and facts["truncated"]["turns"] == 2 and facts["truncated"]["chars"] > 100
    assert facts["contract"]["answer_letters"]["3"]["counts"] == [10, 10, 10] and facts["contract"]["conversations"] == 31
    assert facts["trained_tokens"] == sum(token.trained for row in rows for piece in row.pieces for token in piece.tokens)


def test_the_contract_stops_the_stage_and_names_the_first(ray_cluster: None, tmp_path: Path) -> None:
    answer = "###Answer: OPTION B IS CORRECT."
    conversations = [conversation(number, QUESTION + answer * (number in (3, 6)), answer, kind="exam") for number in range(8)]
    with pytest.raises(StageError, match=r"leak: 2 \(c3, c6\)") as raised:
        chats(tmp_path, conversations, "chats.template=pmc_llama")
    assert "take the answer out" in raised.value.remedy and not (tmp_path / "chats" / "index.json").exists()


def test_what_the_template_refuses_is_dropped_with_its_reason(ray_cluster: None, tmp_path: Path) -> None:
    strange = Conversation("c1", "set", "conversation", (Message("doctor", "a"), Message("assistant", "b")), "mit", "raw/f")
    output, made, _ = chats(tmp_path, [conversation(0, "a", "b"), strange], "chats.template=pmc_llama")
    dropped = [pa.parquet.read_table(made.uri(file.path)) for file in output.files if file.path.startswith("dropped/")]
    (row,) = pa.concat_tables(dropped).to_pylist()
    assert row["step"] == "refused" and "a message of the role doctor" in row["reason"]

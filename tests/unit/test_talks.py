"""A document is withdrawn: what was tuned on questions about it has seen it too. All texts are invented."""

from pathlib import Path

import numpy as np
import pytest

from medschool import artifact
from medschool.artifact import Artifact, Output, write_file, write_parquet
from medschool.rows import CONVERSATION_SCHEMA, Conversation, Message, table
from medschool.tokens.pack import pack_whole
from medschool.tokens.shards import INDEX, Index, index_bytes, ipc_bytes, rows_table, shard_path, where_path, where_table
from medschool.trace.documents import find
from medschool.trace.talks import instruction_sets, talks_about

TALKS = {"pmid:1:terms:0": "pmid:1", "pmid:1:title:0": "pmid:1", "pmid:2:terms:0": "pmid:2", "mmlu:3:direct": ""}


def made(store: str) -> dict[str, Artifact]:
    """A set of four conversations, and the rows made from it, which one of them is too long for."""
    messages = (Message("user", "Red?"), Message("assistant", "Rust."))
    rows = [Conversation(id_, "reading", "exam", messages, "cc-by", "raw/m", document) for id_, document in TALKS.items()]
    files = [rows[:3], rows[3:]]

    def talks(prefix: str) -> Output:
        names = [f"conversations/{number:05}.parquet" for number in range(2)]
        pairs = zip(names, files, strict=True)
        return Output(tuple(write_parquet(prefix, name, table(some, CONVERSATION_SCHEMA)) for name, some in pairs))

    set_ = artifact.make(store, "instructions/reading", "a" * 16, {}, talks)
    ids = [id_ for id_ in TALKS if id_ != "pmid:1:title:0"]
    pairs = [(np.arange(1, 4 + number, dtype=np.uint16), np.ones(3 + number, bool)) for number in range(len(ids))]
    packed = rows_table(pack_whole(ids, pairs, 8, 0, np.dtype(np.uint16)), np.dtype(np.uint16)).combine_chunks()

    def chats(prefix: str) -> Output:
        index = Index(8, "uint16", 0, ((shard_path(0), packed.num_rows),), 3, 0, 0, 0)
        shard = write_file(prefix, shard_path(0), ipc_bytes(packed))
        where = write_parquet(prefix, where_path(0), where_table(packed))
        return Output((shard, where, write_file(prefix, INDEX, index_bytes(index))))

    rows_made = artifact.make(store, "chats/reading", "b" * 16, {"instructions/reading": set_.digest, "tokenizer": "x"}, chats)
    return {rows_made.digest: rows_made}


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        (["pmid:1"], {"pmid:1": 3}),
        (["pmid:1", "pmid:2"], {"pmid:1": 3, "pmid:2": 4}),
        (["pmid:2:terms:0"], {"pmid:2:terms:0": 4}),
        (["pmid:2", "pmid:2:terms:0"], {"pmid:2": 4, "pmid:2:terms:0": 4}),
        (["pmid:9", "mmlu:3"], {}),
    ],
)
def test_a_document_is_found_through_the_conversations_about_it(asked: list[str], tokens: dict[str, int], tmp_path: Path) -> None:
    rows, sets = made(str(tmp_path)), instruction_sets(str(tmp_path))
    (found,) = find(rows, asked, sets).values()
    assert {id_: sum(piece.tokens for piece in pieces) for id_, pieces in found.pieces.items()} == tokens
    assert len(sets) == 1 and not find(rows, ["pmid:1"], {})[found.artifact.digest].pieces


def test_rows_of_documents_have_no_conversations(tmp_path: Path) -> None:
    plain = Artifact("tokens/papers", "f", "", str(tmp_path), (), {}, {"corpus/papers": "y"}, 0.0)
    assert talks_about(plain, {}, ["pmid:1"]) == {}

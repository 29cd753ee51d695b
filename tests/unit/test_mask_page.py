"""What `medschool mask` shows: tokens, mask and positions as training reads them, as text, JSON and a page."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from templates import save_tokenizer
from tiny import RECIPE
from typer.testing import CliRunner

from medschool.artifact import Artifact, ArtifactFile, write_file
from medschool.cli import app
from medschool.commands import mask as verb
from medschool.errors import RecipeError
from medschool.storage import sha256_file
from medschool.tokens.pack import pack_whole
from medschool.tokens.shards import INDEX, Index, index_bytes, ipc_bytes, rows_table, shard_path
from medschool.trace.mask import as_json, first_rows, padding_of, page, token_texts

NAMES = {1: "<u>", 2: "a", 3: " b", 4: "<s>", 5: "\n", 9: "."}


def decode(ids: object) -> str:
    return "".join(NAMES[token] for token in ids)  # type: ignore[attr-defined]


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    """Two shards: [c0 c1 pad] [c2 pad] and [c3 pad]."""
    answers = [[1, 2, 2, 9], [1, 3, 9], [1, 5, 3, 3, 9], [4, 3, 9]]
    pairs = [(np.array(ids, np.uint16), np.array([False, False] + [True] * (len(ids) - 2))) for ids in answers]
    pairs[3][1][0] = True  # the first token of a piece is never a target, whatever its mask says
    files, shards = [], []
    for number, some in enumerate(([0, 1, 2], [3])):
        rows = pack_whole([f"c{index}" for index in some], [pairs[index] for index in some], 8, 9, np.dtype(np.uint16))
        files.append(write_file(str(tmp_path), shard_path(number), ipc_bytes(rows_table(rows, np.dtype(np.uint16)))))
        shards.append((shard_path(number), len(rows.tokens)))
    index = Index(8, "uint16", 9, tuple(shards), 4, 0, 0, 0)
    files.append(write_file(str(tmp_path), INDEX, index_bytes(index)))
    return Artifact("chats/set", "f", "m", str(tmp_path), tuple(files), {}, {}, 0.0)


def test_what_is_shown_is_what_the_loss_is_made_of(made: Artifact) -> None:
    rows = first_rows(made, decode, 9)
    shown = {
        piece.conversation: [(token.id, token.text, token.position, token.trained) for token in piece.tokens]
        for row in rows
        for piece in row.pieces
    }
    assert shown["c0"] == [(1, "<u>", 0, False), (2, "a", 1, False), (2, "a", 2, True), (9, ".", 3, True)]
    assert shown["c3"] == [(4, "<s>", 0, False), (3, " b", 1, False), (9, ".", 2, True)]
    assert not any(trained for *_, trained in shown[""])
    assert sorted((row.shard, row.row) for row in rows) == [(0, 0), (0, 1), (1, 0)]
    assert {padding_of(row) for row in rows} == {0, 4, 5}


def test_only_as_many_rows_as_are_asked_for(made: Artifact) -> None:
    assert [(row.shard, row.row) for row in first_rows(made, decode, 2)] == [(0, 0), (0, 1)]
    assert as_json(first_rows(made, decode, 1))[0]["pieces"][0]["tokens"][0].keys() == {"id", "text", "position", "trained"}


def test_the_page_shows_text_as_text_and_needs_nothing_else(made: Artifact) -> None:
    html = page(first_rows(made, decode, 9), "set")
    assert "&lt;u&gt;" in html and "<u>" not in html and "http" not in html and "<script" not in html
    assert html.count('class="t" title') == 2 + 1 + 3 + 1  # trained tokens of c0 to c3
    assert 'title="9 at 3">.</span>' in html


@given(st.text(max_size=12))
def test_texts_of_tokens_join_to_the_text_however_characters_are_cut(text: str) -> None:
    data = text.encode(errors="ignore")
    texts = token_texts(list(data), lambda ids: bytes(ids).decode(errors="replace"))
    assert "".join(texts) == data.decode() and len(texts) == len(data)


def test_the_verb_prints_a_page_or_plain_data(made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, tokenizer = tmp_path / "tiny.yaml", tmp_path / "tokenizer"
    recipe.write_text(RECIPE, encoding="utf-8")
    save_tokenizer(tokenizer, None, "</s>")
    files = tuple(ArtifactFile(path.name, path.stat().st_size, sha256_file(path)) for path in sorted(tokenizer.iterdir()))
    found = {"chats/graph": made, "tokenizer": Artifact("tokenizer", "f", "m", str(tokenizer), files, {}, {}, 0.0)}
    monkeypatch.setattr(verb, "finished", lambda recipe, store, names: {name: found[name] for name in names})
    monkeypatch.setenv("MEDSCHOOL_STORE", str(tmp_path))

    def shown(*words: str) -> str:
        return CliRunner().invoke(app, ["mask", str(recipe), "--of", "graph", *words], catch_exceptions=False).output

    lines = shown("--n", "1").splitlines()
    assert lines[0] == "shard 0 row 0: 0 tokens of padding" and lines[1].startswith("-- c2: positions 0-4, 3 trained")
    told = json.loads(shown("--json"))
    assert [token["trained"] for token in told[0]["pieces"][0]["tokens"]] == [False, False, True, True, True]
    assert (
        shown("--html", str(tmp_path / "mask.html")).startswith("3 rows")
        and "What training learns" in (tmp_path / "mask.html").read_text()
    )
    with pytest.raises(RecipeError, match="no set of instructions"):
        CliRunner().invoke(app, ["mask", str(recipe), "--of", "nothing"], catch_exceptions=False)

"""Finished sets of instructions as a Hugging Face `datasets` directory: Parquet, one configuration a set, and a card.

    OUT/README.md                  the card: sizes, kinds, licences, what was left out and why, what it was made from, the teacher
    OUT/data/graph/00000.parquet   one row a conversation, with the columns of SCHEMA

`datasets.load_dataset("OUT", "graph")` reads it. `messages` is what chat templates take: a list of {role, content}. Each row says
where it is from (the raw file, and its id in it) and under which licence; its sha256 tells whether it is still what was exported.
One part is in memory at a time.

What it does not hold: the rows that were left out (they are in the dropped/ files of the store, with their reasons), and the rows
of tokens, which belong to one tokenizer.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medschool import __version__, storage
from medschool.artifact import Artifact, digest_of
from medschool.corpus.dataset_folder import CARD, DATA, card_head, counts_table, new_folder, table
from medschool.errors import StageError
from medschool.procedure import recipe_digest
from medschool.recipe import Recipe
from medschool.rows import CONVERSATION_SCHEMA

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("set", pa.string()),
        ("kind", pa.string()),
        ("messages", CONVERSATION_SCHEMA.field("messages").type),
        ("licence", pa.string()),
        ("uri", pa.string()),
        ("document", pa.string()),
        ("sha256", pa.string()),
    ]
)
"""Columns of rows.Conversation, `source` under the name of what it names; sha256 is `sha256_of` the messages."""


@dataclass(frozen=True)
class Exported:
    """What one set came to."""

    conversations: int
    turns: int
    chars: int
    kinds: dict[str, int]
    licences: dict[str, int]
    dropped: dict[str, int]
    """What the instructions stage had left out before, by step."""
    left_out: dict[str, int]
    """What its makers had read and not used, by step."""
    teacher: dict[str, Any] | None
    """What a teacher was asked and what came of it (instructions.spending.Ledger.facts); None where none was."""


def sha256_of(messages: list[dict[str, str]]) -> str:
    """Hex sha256 of the messages as JSON in ASCII, keys sorted, without spaces."""
    return digest_of([{"role": message["role"], "content": message["content"]} for message in messages])


def export_instructions(
    recipe: Recipe, sets: Mapping[str, Artifact], folder: Path, say: Callable[[str], None]
) -> dict[str, Exported]:
    """Write the conversations of `sets` (instructions artifacts by name) to `folder`.

    Raises InputError when the folder is there and not empty, StageError when an artifact has lost rows since it was made.
    """
    found = {}
    with new_folder(folder) as partial:
        for name, made in sets.items():
            found[name] = _export_set(name, made, partial / DATA / name)
            say(f"{name}: {found[name].conversations:,} conversations, {found[name].chars:,} characters")
        (partial / CARD).write_text(_card(recipe, found), encoding="utf-8")
    return found


def _export_set(name: str, made: Artifact, folder: Path) -> Exported:
    folder.mkdir(parents=True)
    kinds, licences = Counter[str](), Counter[str]()
    turns, chars = 0, 0
    for number, file in enumerate(file for file in made.files if file.path.startswith("conversations/")):
        rows = storage.read_parquet(made.uri(file.path)).to_pylist()
        kinds.update(row["kind"] for row in rows)
        licences.update(row["licence"] for row in rows)
        turns += sum(len(row["messages"]) for row in rows)
        chars += sum(len(message["content"]) for row in rows for message in row["messages"])
        exported = [row | {"set": name, "sha256": sha256_of(row["messages"])} for row in rows]
        pq.write_table(pa.Table.from_pylist(exported, SCHEMA), folder / f"{number:05}.parquet", compression="zstd")
    if kinds.total() != made.facts["conversations"]:
        problem = f"holds {kinds.total()} conversations, its manifest says {made.facts['conversations']}"
        raise StageError(problem, "delete its manifest and run the instructions stage again", made.manifest_uri)
    facts = made.facts
    return Exported(
        conversations=kinds.total(),
        turns=turns,
        chars=chars,
        kinds=dict(sorted(kinds.items())),
        licences=dict(licences.most_common()),
        dropped=dict(facts["dropped"]),
        left_out=dict(facts.get("left_out", {})),
        teacher=facts.get("teacher"),
    )


def _card(recipe: Recipe, sets: Mapping[str, Exported]) -> str:
    kinds = {name: one.kinds for name, one in sets.items()}
    licences = {name: one.licences for name, one in sets.items()}
    left_out = {name: Counter(one.dropped) + Counter(one.left_out) for name, one in sets.items()}
    parts = [
        card_head(sets, "text-generation", sum(one.conversations for one in sets.values())),
        f"# Instructions of {recipe.name}\n",
        "Conversations for instruction tuning: the assistant's turns are what is learnt. Every row names its licence, the file "
        "it was made from, and the sha256 of its messages. A row may be passed on as far as its licence allows; `unstated` "
        "allows nothing, and `umls` needs one's own licence. **Not for clinical use.**\n",
        table(
            ["set", "conversations", "turns", "characters"],
            [[name, one.conversations, one.turns, one.chars] for name, one in sets.items()],
        ),
        "## Kinds\n",
        counts_table("set", "kind", kinds),
        "## Licences, in conversations\n",
        counts_table("set", "licence", licences),
        "## Left out, by step\n",
        counts_table("set", "step", left_out),
        "## How it was made\n",
        f"By medschool {__version__} from the recipe `{recipe.name}`, digest `{recipe_digest(recipe)}`, seed {recipe.seed}. "
        f"{_withheld(recipe)}\n",
        table(["set", "made from", "format"], [row for name in sets for row in _sources(recipe, name)]),
        *_teacher(recipe, {name: one.teacher for name, one in sets.items() if one.teacher}),
    ]
    return "\n".join(parts)


def _withheld(recipe: Recipe) -> str:
    if not recipe.exams:
        return "It was not held against any exam."
    return f"Conversations that hold a question of these exams were removed: {', '.join(recipe.exams)}."


def _sources(recipe: Recipe, name: str) -> list[list[str]]:
    spec = recipe.instructions[name]
    if spec.from_corpus is not None:
        return [[name, f"source `{spec.from_corpus.source}` of this recipe", spec.from_corpus.format]]
    return [[name, f"`{files.uri}`", files.format] for files in spec.files]


def _teacher(recipe: Recipe, costs: Mapping[str, dict[str, Any]]) -> list[str]:
    """A section on the sets that a teacher was asked for; nothing where there are none."""
    if not costs:
        return []
    rows = [
        [name, cost["model"], str(recipe.instructions[name].ask), cost["asked"], cost["accepted"], f"{cost['acceptance']:.1%}"]
        for name, cost in costs.items()
    ]
    text = "Parts of these sets were written by a language model; its own terms may hold for them.\n"
    return ["## Teacher\n", text, table(["set", "model", "asked for", "asked", "accepted", "acceptance"], rows)]

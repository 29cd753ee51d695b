"""The instructions and chats stages as Ray Data jobs.

    raw files --one maker a file--> conversations --licence, exam overlap, repeats, sample--> conversations/*.parquet
                                     what did not pass, with its reason --------------------> dropped/*.parquet
    conversations --template, one task a part--> token ids and masks --whole, into rows--> shuffled shards

As in the corpus, only names and hashes travel through Ray; texts go from worker to store. The hashes of all conversations are
compared on the driver: 16 bytes each, 8 MB for the 514 thousand of the released set.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from medschool import storage
from medschool.artifact import Artifact, ArtifactFile, Output, local_copy, write_file, write_parquet
from medschool.errors import InputError, StageError
from medschool.exams.make import read_items
from medschool.exams.overlap import ExamIndex
from medschool.formats import by_name
from medschool.instructions.formats import INSTRUCTION_FORMATS, subject_of
from medschool.instructions.template import ChatTemplate
from medschool.recipe import Recipe
from medschool.rows import CONVERSATION_SCHEMA, DROPPED_SCHEMA, Conversation, Dropped, Message, table
from medschool.seed import seed_of
from medschool.tokens.deal import plan_deal
from medschool.tokens.on_ray import heldout_rows, store_shards
from medschool.tokens.pack import Rows, pack_whole
from medschool.tokens.shards import INDEX, Index, index_bytes

TASK_CPUS = 0.5
READ, ENCODED, WORK = "read", "encoded", "work"
"""Folders of first passes. The second pass reads them and writes elsewhere, so that Ray may run any task twice."""
SAMPLE_CHARS = 200


def make_instructions(recipe: Recipe, name: str, exams: Iterable[Artifact], store_uri: str, prefix_uri: str) -> Output:
    """Make the conversations of one set. Raises InputError for an unreadable file, StageError when nothing is left."""
    spec = recipe.instructions[name]
    below = store_uri.rstrip("/") + "/"
    found = [(info.uri, files) for files in spec.files for info in storage.require_files(storage.join(store_uri, files.uri))]
    jobs = [
        {"part": part, "uri": uri, "name": uri.removeprefix(below), "format": kind.format, "licence": kind.licence or ""}
        for part, (uri, kind) in enumerate(found)
    ]
    items = [item for exam in exams for item in read_items(exam)]
    settings = {
        "name": name,
        "subjects": spec.subjects,
        "licences": frozenset(spec.licences),
        "seed": recipe.seed,
        "exam_index": ray.put(ExamIndex(items)),
        "prefix_uri": prefix_uri,
    }
    parts = _each(jobs, _read_file, settings)
    _check_subjects(name, spec.subjects, {subject for part in parts for subject in part["subjects"]})
    done = _each(_choose(parts, spec.conversations), _keep, {"prefix_uri": prefix_uri})
    storage.delete_prefix(storage.join(prefix_uri, READ))
    facts = _facts(done)
    unchecked = sum(count for step, count in facts["dropped"].items() if step not in ("exam", "duplicate"))
    facts["overlap"] = {
        "exam_items": len(items),
        "checked": facts["made"] - unchecked,
        "removed": facts["dropped"].get("exam", 0),
    }
    if not facts["conversations"]:
        raise StageError(
            f"no conversation of {facts['made']} is left ({facts['dropped']})",
            "look at the reasons in the dropped/ files; widen `licences` or `subjects`",
            f"instructions.{name}",
        )
    return Output(tuple(ArtifactFile(**file) for part in done for file in part["files"]), facts)


def _check_subjects(name: str, wanted: tuple[str, ...] | None, found: set[str]) -> None:
    missing = sorted(set(wanted or ()) - found)
    if missing:
        raise InputError(
            f"no conversation has the subject {', '.join(missing)}",
            f"the subjects in its files are {', '.join(sorted(found)) or 'none: this format has no subjects'}",
            f"instructions.{name}.subjects",
        )


def _each(jobs: list[dict[str, Any]], do: Callable[..., dict[str, Any]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """`do` on every job, one Ray task each; the answers in the order of the parts."""
    rows = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(do, fn_kwargs=settings, num_cpus=TASK_CPUS)
    return sorted(rows.take_all(), key=lambda row: int(row["part"]))


def _read_file(
    job: dict[str, Any],
    name: str,
    subjects: tuple[str, ...] | None,
    licences: frozenset[str],
    seed: int,
    exam_index: ray.ObjectRef,
    prefix_uri: str,
) -> dict[str, Any]:
    """One raw file: its conversations and drops written, a content hash and a rank of each conversation returned."""
    index: ExamIndex = ray.get(exam_index)
    made: list[Conversation] = []
    dropped: list[Dropped] = []
    seen: set[str] = set()
    maker = by_name(INSTRUCTION_FORMATS, job["format"], f"instructions.{name}.files")
    with storage.open_raw(job["uri"], job["name"]) as stream:
        data = stream.read()
    for row in maker(data, job["name"], name, seed):
        if isinstance(row, Conversation) and job["licence"]:
            row = replace(row, licence=job["licence"])
        if subjects is not None and (subject := subject_of(row)) is not None:
            seen.add(subject)
            if subject not in subjects:
                continue
        kept = row if isinstance(row, Dropped) else _checked(row, licences, index)
        (dropped if isinstance(kept, Dropped) else made).append(kept)  # type: ignore[arg-type]
    hashes = np.array([seed_of(*(message.content for message in row.messages)) for row in made], dtype=np.uint64)
    ranks = np.array([seed_of(seed, "conversation", row.id) for row in made], dtype=np.uint64)
    write_parquet(prefix_uri, f"{READ}/conversations/{job['part']:05}.parquet", table(made, CONVERSATION_SCHEMA))
    write_parquet(prefix_uri, f"{READ}/dropped/{job['part']:05}.parquet", table(dropped, DROPPED_SCHEMA))
    return {"part": job["part"], "hashes": hashes.tobytes(), "ranks": ranks.tobytes(), "subjects": sorted(seen)}


def _checked(row: Conversation, licences: frozenset[str], exams: ExamIndex) -> Conversation | Dropped:
    """The conversation, or why it may not be trained on."""
    if row.licence not in licences:
        return _drop(row, "licence", f"licence {row.licence} is not among the allowed ones ({', '.join(sorted(licences))})")
    hit = exams.find("\n".join(message.content for message in row.messages))
    if hit is not None:
        return _drop(row, "exam", f"holds {hit.share:.0%} of exam item {hit.item}")
    return row


def _drop(row: Conversation, step: str, reason: str) -> Dropped:
    return Dropped(row.id, row.source, step, reason, row.messages[0].content[:SAMPLE_CHARS], row.uri)


def _choose(parts: list[dict[str, Any]], sample: int | None) -> list[dict[str, Any]]:
    """Which rows of each part are repeats of an earlier one, and which of the others are kept: those of the lowest ranks."""
    hashes = np.concatenate([np.frombuffer(part["hashes"], dtype=np.uint64) for part in parts])
    ranks = np.concatenate([np.frombuffer(part["ranks"], dtype=np.uint64) for part in parts])
    first = np.zeros(len(hashes), dtype=bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    kept = first.copy()
    if sample is not None and first.sum() > sample:
        kept &= ranks <= np.partition(ranks[first], sample - 1)[sample - 1]
    starts = np.cumsum([0, *(len(part["hashes"]) // hashes.itemsize for part in parts)])
    return [
        {
            "part": part["part"],
            "kept": np.flatnonzero(kept[start:stop]).tolist(),
            "repeats": np.flatnonzero(~first[start:stop]).tolist(),
        }
        for part, (start, stop) in zip(parts, pairwise(starts), strict=True)
    ]


def _keep(part: dict[str, Any], prefix_uri: str) -> dict[str, Any]:
    """Write the kept conversations of a part, and its drops with the repeats among them."""
    name = f"{part['part']:05}.parquet"
    made, dropped = (storage.read_parquet(storage.join(prefix_uri, READ, kind, name)) for kind in ("conversations", "dropped"))
    copies = [
        Dropped(row["id"], row["source"], "duplicate", "the same messages as an earlier one", _sample(row), row["uri"])
        for row in made.take(pa.array(part["repeats"], pa.int64())).to_pylist()
    ]
    dropped = pa.concat_tables([dropped, table(copies, DROPPED_SCHEMA)])
    kept = made.take(pa.array(part["kept"], pa.int64()))
    files = [
        write_parquet(prefix_uri, f"conversations/{name}", kept),
        write_parquet(prefix_uri, f"dropped/{name}", dropped),
    ]
    return {
        "part": part["part"],
        "made": made.num_rows + dropped.num_rows - len(copies),
        "conversations": kept.num_rows,
        "files": [vars(file) for file in files],
        "kinds": dict(Counter(kept.column("kind").to_pylist())),
        "licences": dict(Counter(kept.column("licence").to_pylist())),
        "dropped": dict(Counter(dropped.column("step").to_pylist())),
    }


def _sample(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])[:SAMPLE_CHARS]


def _facts(parts: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {key: sum(part[key] for part in parts) for key in ("made", "conversations")}
    return {**numbers, **{key: _total(parts, key) for key in ("kinds", "licences", "dropped")}}


def _total(parts: list[dict[str, Any]], key: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update({name: count for name, count in part[key].items() if count})
    return dict(sorted(counts.items()))


# ---- conversations to rows ----------------------------------------------------------------------------------------------------


def make_chats(
    recipe: Recipe, instructions: Artifact, tokens: dict[str, Artifact], tokenizer: Artifact, prefix_uri: str
) -> Output:
    """Encode, pack, shuffle and store the conversations of one set, without those made from a held-out document of `tokens`.

    Raises StageError when none is short enough.
    """
    spec = recipe.chats
    assert spec is not None
    tool = ChatTemplate(local_copy(tokenizer))
    uris = [instructions.uri(file.path) for file in instructions.files if file.path.startswith("conversations/")]
    jobs = [{"part": part, "uri": uri} for part, uri in enumerate(uris)]
    held = frozenset(id_ for made in tokens.values() for id_ in heldout_rows(made).column("id").to_pylist())
    settings = {"tokenizer": tokenizer, "held": ray.put(held), "row_tokens": spec.row_tokens, "prefix_uri": prefix_uri}
    parts = _each(jobs, _encode_part, settings)
    size, kept = sum(part["tokens"] for part in parts), sum(part["conversations"] for part in parts)
    if not kept:
        raise StageError(f"no conversation fits into {spec.row_tokens} tokens", "raise chats.row_tokens", instructions.stage)
    encoded = [storage.join(prefix_uri, ENCODED, f"{part['part']:05}.parquet") for part in parts]
    packer = partial(_pack_part, row_tokens=spec.row_tokens, padding_id=tool.eos_id, dtype=tool.dtype.name)
    shards = max(1, round(size / spec.row_tokens / spec.rows_per_shard))
    shard_bytes = spec.rows_per_shard * spec.row_tokens * tool.dtype.itemsize
    deal = plan_deal(encoded, shards, shard_bytes, recipe.seed, storage.join(prefix_uri, WORK), prefix_uri)
    stored = store_shards(encoded, packer, deal)
    for passed in (ENCODED, WORK):
        storage.delete_prefix(storage.join(prefix_uri, passed))
    index = Index(
        row_tokens=spec.row_tokens,
        dtype=tool.dtype.name,
        eos_id=tool.eos_id,
        shards=stored.shards,
        documents=kept,
        tail_tokens=0,
        padding_tokens=stored.padding_tokens,
        heldout_documents=0,
        heldout_tokens=0,
    )
    files = (*stored.files, *(ArtifactFile(**part["file"]) for part in parts), write_file(prefix_uri, INDEX, index_bytes(index)))
    facts = {
        "rows": index.rows,
        "tokens": size,
        "trained_tokens": sum(part["trained"] for part in parts),
        "padding_tokens": index.tokens - size,
        "conversations": kept,
        "dropped": {step: sum(part["dropped"][step] for part in parts) for step in ("heldout", "too_long")},
        "shards": len(stored.shards),
    }
    return Output(files, facts)


@lru_cache(maxsize=2)
def _template(folder: str) -> ChatTemplate:
    return ChatTemplate(Path(folder))


def _encode_part(
    job: dict[str, Any], tokenizer: Artifact, held: ray.ObjectRef, row_tokens: int, prefix_uri: str
) -> dict[str, Any]:
    """The conversations of one part as token ids and masks; those longer than a row are dropped, never cut."""
    template, held_ids = _template(str(local_copy(tokenizer))), ray.get(held)
    ids, encoded, dropped = [], [], []
    for row in storage.read_parquet(str(job["uri"])).to_pylist():
        messages = tuple(Message(**message) for message in row["messages"])
        tokens, trained = template.conversation(messages)
        for step, reason, found in (
            ("heldout", f"is made from {row['document']}, which is held out", row["document"] in held_ids),
            ("too_long", f"{len(tokens)} tokens, a row has {row_tokens}", len(tokens) > row_tokens),
        ):
            if found:
                dropped.append(Dropped(row["id"], row["source"], step, reason, messages[0].content[:SAMPLE_CHARS], row["uri"]))
                break
        else:
            ids.append(row["id"])
            encoded.append((tokens, trained))
    name = f"{job['part']:05}.parquet"
    columns = {"id": ids, "tokens": [tokens.tolist() for tokens, _ in encoded], "trained": [mask.tolist() for _, mask in encoded]}
    schema = pa.schema([("id", pa.string()), ("tokens", pa.list_(pa.uint32())), ("trained", pa.list_(pa.bool_()))])
    write_parquet(prefix_uri, f"{ENCODED}/{name}", pa.table(columns, schema=schema))
    return {
        "part": job["part"],
        "conversations": len(ids),
        "tokens": sum(len(tokens) for tokens, _ in encoded),
        "trained": sum(int(mask.sum()) for _, mask in encoded),
        "dropped": {step: sum(row.step == step for row in dropped) for step in ("heldout", "too_long")},
        "file": vars(write_parquet(prefix_uri, f"dropped/{name}", table(dropped, DROPPED_SCHEMA))),
    }


def _pack_part(uri: str, row_tokens: int, padding_id: int, dtype: str) -> Rows:
    """The encoded conversations of one part in rows."""
    found = storage.read_parquet(uri)
    pairs = [
        (np.asarray(tokens, dtype=dtype), np.asarray(trained, dtype=bool))
        for tokens, trained in zip(found.column("tokens").to_pylist(), found.column("trained").to_pylist(), strict=True)
    ]
    return pack_whole(found.column("id").to_pylist(), pairs, row_tokens, padding_id, np.dtype(dtype))

"""The instructions and chats stages as Ray Data jobs.

    raw files, or those of a corpus --one task a file: its maker--> portions
    portions --one task a portion: licence, exams, identifiers--> what passes
    hashes and ranks of what passes --repeats, sample, on the driver--> conversations/*.parquet
                                        what did not pass, with its reason --> dropped/*.parquet
                                        exam items in it --> exam_items.parquet
    conversations --template, one task a part--> token ids and masks --whole, into rows--> shuffled shards
    shards --contract, one task a shard--> facts, or the first ids that break it

As in the corpus, only names and hashes travel through Ray; texts go from worker to store. The hashes of all conversations are
compared on the driver (medschool.instructions.choose); the memory of a task is that of a portion, whatever the size of a file.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from medschool import storage
from medschool.artifact import Artifact, ArtifactFile, Output, local_copy, write_file, write_parquet
from medschool.corpus.licences import allowed
from medschool.errors import InputError, StageError
from medschool.exams.make import read_items
from medschool.exams.overlap import ExamIndex
from medschool.instructions.answers import FOLDER
from medschool.instructions.asking import ask_portions
from medschool.instructions.budget import check_files, check_identifiers
from medschool.instructions.chats import STEPS, Chat, chat_of
from medschool.instructions.check import CHECKED, COMPARED, Checked, Kept, Terms, check_portion, keep_portion, refusal
from medschool.instructions.choose import choose
from medschool.instructions.contract import Findings, examine_rows, findings_from, findings_json, merged, settle, with_repeats
from medschool.instructions.from_corpus import copies_in, corpus_files, read_documents
from medschool.instructions.portions import READ, Reading, raw_files, read_file
from medschool.instructions.template import ChatTemplate
from medschool.overlap.search import OVERLAP_SCHEMA, REMOVED, counts
from medschool.recipe import Recipe
from medschool.recipe.instructions import Chats
from medschool.rows import DROPPED_SCHEMA, Dropped, ExamItem, table
from medschool.tokens.deal import plan_deal
from medschool.tokens.on_ray import heldout_rows, store_shards
from medschool.tokens.pack import Rows, pack_whole
from medschool.tokens.shards import INDEX, Index, index_bytes, read_table

TASK_CPUS = 0.5
ENCODED, WORK = "encoded", "work"
"""Folders of first passes. The second pass reads them and writes elsewhere, so that Ray may run any task twice."""
SAMPLE_CHARS = 200
EMPTY: Mapping[str, Artifact] = {}
ENCODED_SCHEMA = pa.schema([("id", pa.string()), ("tokens", pa.list_(pa.uint32())), ("trained", pa.list_(pa.bool_()))])


def make_instructions(
    recipe: Recipe, name: str, exams: Iterable[Artifact], store_uri: str, prefix_uri: str, texts: Mapping[str, Artifact] = EMPTY
) -> Output:
    """Make the conversations of one set. texts: by role, the corpus that it is made from, and the near-duplicates, if any.

    Raises InputError for a pattern without files, an unknown format or subject, StorageError where the store fails, StageError
    when more is broken than the recipe allows, or when nothing is left.
    """
    spec, where = recipe.instructions[name], f"instructions.{name}"
    items = [item for exam in exams for item in read_items(exam)]
    readings = _read(recipe, name, store_uri, texts, prefix_uri)
    check_files(readings, spec.bad_files, where)
    _check_subjects(name, spec.subjects, {subject for reading in readings for subject in reading.subjects})
    checked = _check(recipe, name, [portion for reading in readings for portion in reading.names()], items, prefix_uri)
    if recipe.clean.identifiers is not None:
        check_identifiers(checked, recipe.clean.identifiers, where)
    passed, hashes, ranks = ([getattr(portion, key) for portion in checked] for key in ("passed", "hashes", "ranks"))
    chosen = choose(passed, hashes, ranks, spec.conversations)
    jobs = [(number, portion.name, choice) for number, (portion, choice) in enumerate(zip(checked, chosen, strict=True))]
    kept: list[Kept] = _run(lambda job: keep_portion(job[0], job[1], job[2], prefix_uri), jobs)
    for folder in (READ, CHECKED):
        storage.delete_prefix(storage.join(prefix_uri, folder))
    kept, costs = _ask(recipe, name, kept, items, store_uri, prefix_uri)
    held = pa.concat_tables([OVERLAP_SCHEMA.empty_table(), *(portion.held for portion in checked)]).combine_chunks()
    facts = _facts(readings, checked, kept, len(items)) | {"exams": counts(held, Counter(item.exam for item in items))} | costs
    if not facts["conversations"]:
        raise StageError(
            f"no conversation of {facts['made']} is left ({facts['dropped']})",
            "look at the reasons in the dropped/ files; widen `licences` or `subjects`",
            where,
        )
    listed = write_parquet(prefix_uri, REMOVED, held)
    return Output((*(file for portion in kept for file in portion.files), listed), facts)


def _read(recipe: Recipe, name: str, store_uri: str, texts: Mapping[str, Artifact], prefix_uri: str) -> list[Reading]:
    """Portions of every raw file of the set, or of every file of the corpus that it is made from."""
    spec, seed = recipe.instructions[name], recipe.seed
    if spec.from_corpus is None:
        files = raw_files(recipe, name, store_uri)
        return _run(lambda file: read_file(file, name, spec.subjects, seed, prefix_uri), files)
    words, copies = spec.from_corpus.passage_words, ray.put(copies_in(recipe, name, texts))
    parts = corpus_files(recipe, name, texts[f"corpus/{spec.from_corpus.source}"])
    return _run(lambda part: read_documents(part, name, ray.get(copies), seed, words, prefix_uri), parts)


def _check(recipe: Recipe, name: str, portions: list[str], items: list[ExamItem], prefix_uri: str) -> list[Checked]:
    """Every portion against the terms of the recipe, and the exams."""
    terms, exams = _terms(recipe, name), ray.put(ExamIndex(items))
    return _run(lambda portion: check_portion(portion, terms, _exams(exams), prefix_uri), portions)


def _terms(recipe: Recipe, name: str) -> Terms:
    return Terms(allowed(recipe.instructions[name].licences), recipe.clean.identifiers, recipe.seed)


def _ask(
    recipe: Recipe, name: str, kept: list[Kept], items: list[ExamItem], store_uri: str, prefix_uri: str
) -> tuple[list[Kept], dict[str, Any]]:
    """What the recipe's teacher adds to a set, and what that cost: one task, because the bounds are those of the whole set."""
    ask, teacher = recipe.instructions[name].ask, recipe.teacher
    if ask is None or teacher is None:
        return kept, {}
    terms, exams = _terms(recipe, name), ray.put(ExamIndex(items))

    def task(_: None) -> tuple[list[Kept], dict[str, Any]]:
        def check(row: dict[str, Any]) -> Dropped | None:
            return refusal(row, terms, _exams(exams), Counter())

        return ask_portions(kept, ask, teacher, recipe.seed, check, prefix_uri, storage.join(store_uri, FOLDER))

    [(asked, costs)] = _run(task, [None])
    for file in (file for portion in kept for file in portion.files):
        storage.delete_file(storage.join(prefix_uri, file.path))
    return asked, {"teacher": costs}


@lru_cache(maxsize=1)
def _exams(index: ray.ObjectRef) -> ExamIndex:
    """The index of all exams, unpacked once a process: its thousands of items take as long as a portion."""
    found: ExamIndex = ray.get(index)
    return found


def _check_subjects(name: str, wanted: tuple[str, ...] | None, found: set[str]) -> None:
    missing = sorted(set(wanted or ()) - found)
    if missing:
        raise InputError(
            f"no conversation has the subject {', '.join(missing)}",
            f"the subjects in its files are {', '.join(sorted(found)) or 'none: this format has no subjects'}",
            f"instructions.{name}.subjects",
        )


def _facts(readings: list[Reading], checked: list[Checked], kept: list[Kept], exam_items: int) -> dict[str, Any]:
    """made = conversations + all dropped but the unreadable files + what a sample leaves."""
    dropped = _total(portion.dropped for portion in kept)
    made = sum(portion.made for portion in kept)
    unchecked = sum(count for step, count in dropped.items() if step not in (*COMPARED, "unreadable"))
    return {
        "made": made,
        "conversations": sum(portion.conversations for portion in kept),
        "kinds": _total(portion.kinds for portion in kept),
        "licences": _total(portion.licences for portion in kept),
        "dropped": dropped,
        "identifiers": _total(portion.found for portion in checked),
        "left_out": _total(reading.left_out for reading in readings),
        "overlap": {"exam_items": exam_items, "checked": made - unchecked, "removed": dropped.get("exam", 0)},
    }


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted((+total).items()))


def _run(do: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    """`do` for every job, one Ray task each; the results in the order of the jobs."""
    rows = [{"part": number, "job": pickle.dumps(job)} for number, job in enumerate(jobs)]
    done = _each(rows, lambda row: {"part": row["part"], "result": pickle.dumps(do(pickle.loads(row["job"])))}, {})
    return [pickle.loads(row["result"]) for row in done]


def _each(jobs: list[dict[str, Any]], do: Callable[..., dict[str, Any]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """`do` on every job, one Ray task each; the answers in the order of the parts."""
    rows = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(do, fn_kwargs=settings, num_cpus=TASK_CPUS)
    return sorted(rows.take_all(), key=lambda row: int(row["part"]))


# ---- conversations to rows ----------------------------------------------------------------------------------------------------


def make_chats(
    recipe: Recipe, instructions: Artifact, tokens: dict[str, Artifact], tokenizer: Artifact, prefix_uri: str
) -> Output:
    """Encode, pack, shuffle and store the conversations of one set, without those made from a held-out document of `tokens`.

    Raises StageError when none is short enough, or when one breaks the contract (instructions.contract).
    """
    spec = recipe.chats
    assert spec is not None
    tool = ChatTemplate(local_copy(tokenizer), spec.template)
    uris = [instructions.uri(file.path) for file in instructions.files if file.path.startswith("conversations/")]
    jobs = [{"part": part, "uri": uri} for part, uri in enumerate(uris)]
    held = frozenset(id_ for made in tokens.values() for id_ in heldout_rows(made).column("id").to_pylist())
    parts = _each(jobs, _encode_part, {"tokenizer": tokenizer, "held": ray.put(held), "spec": spec, "prefix_uri": prefix_uri})
    size, kept = sum(part["tokens"] for part in parts), sum(part["conversations"] for part in parts)
    if not kept:
        problem = f"no conversation fits into {spec.row_tokens} tokens ({_total(part['dropped'] for part in parts)})"
        raise StageError(problem, "raise chats.row_tokens, or set chats.too_long: truncate", instructions.stage)
    encoded = [storage.join(prefix_uri, ENCODED, f"{part['part']:05}.parquet") for part in parts]
    packer = partial(_pack_part, row_tokens=spec.row_tokens, padding_id=tool.eos_id, dtype=tool.dtype.name)
    shards = max(1, round(size / spec.row_tokens / spec.rows_per_shard))
    shard_bytes = spec.rows_per_shard * spec.row_tokens * tool.dtype.itemsize
    deal = plan_deal(encoded, shards, shard_bytes, recipe.seed, storage.join(prefix_uri, WORK), prefix_uri)
    stored = store_shards(encoded, packer, deal)
    contract = _contract(parts, [storage.join(prefix_uri, path) for path, _ in stored.shards], tool.eos_id, instructions.stage)
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
    cut = {key: sum(part["cut"][key] for part in parts) for key in ("conversations", "turns", "chars")}
    facts = {
        "rows": index.rows,
        "tokens": size,
        "trained_tokens": contract["trained_tokens"],
        "padding_tokens": index.tokens - size,
        "conversations": kept,
        "dropped": {step: sum(part["dropped"][step] for part in parts) for step in STEPS},
        "truncated": {**cut, "share": cut["conversations"] / kept},
        "contract": contract,
        "shards": len(stored.shards),
    }
    return Output(files, facts)


def _contract(parts: list[dict[str, Any]], shard_uris: list[str], eos_id: int, where: str) -> dict[str, Any]:
    """The facts of a set whose stored shards keep the contract; raises as contract.settle."""
    jobs = [{"part": part, "uri": uri} for part, uri in enumerate(shard_uris)]
    read = _each(jobs, _examine_shard, {"eos_id": eos_id})
    hashes = np.concatenate([np.frombuffer(part["hashes"], dtype=np.uint64).reshape(-1, 2) for part in read])
    stored, repeats = with_repeats(_together(read), hashes)
    return settle(_together(parts), stored, repeats, where)


def _together(parts: list[dict[str, Any]]) -> Findings:
    return merged(findings_from(part["findings"]) for part in parts)


def _examine_shard(job: dict[str, Any], eos_id: int) -> dict[str, Any]:
    """One shard read again from the store, as training reads it."""
    findings, hashes = examine_rows(read_table(job["uri"]), eos_id)
    return {"part": job["part"], "findings": findings_json(findings), "hashes": hashes.tobytes()}


@lru_cache(maxsize=2)
def _template(folder: str, template: str) -> ChatTemplate:
    return ChatTemplate(Path(folder), template)


def _encode_part(job: dict[str, Any], tokenizer: Artifact, held: ray.ObjectRef, spec: Chats, prefix_uri: str) -> dict[str, Any]:
    """The conversations of one part as token ids and masks, what was found in them, and those that were dropped."""
    template, held_ids = _template(str(local_copy(tokenizer)), spec.template), ray.get(held)
    rows = [chat_of(row, template, spec, held_ids) for row in storage.read_parquet(str(job["uri"])).to_pylist()]
    chats = [row for row in rows if isinstance(row, Chat)]
    dropped = [row for row in rows if isinstance(row, Dropped)]
    name = f"{job['part']:05}.parquet"
    columns = [[chat.id for chat in chats], [chat.found.ids for chat in chats], [chat.found.trained for chat in chats]]
    write_parquet(prefix_uri, f"{ENCODED}/{name}", pa.table(columns, schema=ENCODED_SCHEMA))
    return {
        "part": job["part"],
        "conversations": len(chats),
        "tokens": sum(len(chat.found.ids) for chat in chats),
        "findings": findings_json(merged(chat.findings for chat in chats)),
        "cut": {
            "conversations": sum(chat.cut for chat in chats),
            "turns": sum(chat.turns_cut for chat in chats),
            "chars": sum(chat.chars_cut for chat in chats),
        },
        "dropped": {step: sum(row.step == step for row in dropped) for step in STEPS},
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

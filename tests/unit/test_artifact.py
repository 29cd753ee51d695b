"""Artifacts: the manifest is last and unique, sizes and hashes are checked, fingerprints say what decides the content."""

import json
import threading
from pathlib import Path

import pytest

from medschool import artifact, storage
from medschool.artifact import Output, fetch_files, find, make, read_manifest, write_file
from medschool.errors import InputError, StorageError
from medschool.procedure import stages, trials
from medschool.recipe import Recipe, load

ROOT = Path(__file__).parents[2]


def made(store: str, content: bytes = b"rows") -> artifact.Artifact:
    return make(store, "corpus/x", "f00d", {}, lambda prefix: Output((write_file(prefix, "a/b.txt", content),), {"rows": 1}))


def test_a_finished_stage_is_found_again(tmp_path: Path) -> None:
    store = str(tmp_path)
    assert find(store, "corpus/x", "f00d") is None
    first = made(store)
    assert find(store, "corpus/x", "f00d") == first
    assert storage.read_bytes(first.uri("a/b.txt")) == b"rows"


def test_a_stage_that_dies_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    def dies(prefix: str) -> Output:
        write_file(prefix, "a", b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        make(str(tmp_path), "corpus/x", "f00d", {}, dies)
    assert list(tmp_path.rglob("a"))
    assert find(str(tmp_path), "corpus/x", "f00d") is None


def test_a_file_that_is_shorter_than_written_is_not_committed(tmp_path: Path) -> None:
    def loses(prefix: str) -> Output:
        file = write_file(prefix, "a", b"whole")
        (Path(prefix) / "a").write_bytes(b"who")
        return Output((file,))

    with pytest.raises(StorageError, match="5 bytes were written, the store lists 3"):
        make(str(tmp_path), "corpus/x", "f00d", {}, loses)
    assert find(str(tmp_path), "corpus/x", "f00d") is None


def test_of_two_writers_one_commits_and_the_other_takes_its_result(tmp_path: Path) -> None:
    barrier, results = threading.Barrier(4), []

    def write(number: int) -> None:
        def do(prefix: str) -> Output:
            file = write_file(prefix, "who", str(number).encode())
            barrier.wait()
            return Output((file,))

        results.append(make(str(tmp_path), "corpus/x", "f00d", {}, do))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.prefix_uri for result in results}) == 1
    assert len(list(tmp_path.rglob("who"))) == 1


def test_damage_after_commit_is_found_on_read(tmp_path: Path) -> None:
    found = made(str(tmp_path / "store"))
    Path(found.uri("a/b.txt")).write_bytes(b"rowz")
    with pytest.raises(InputError, match="sha256"):
        fetch_files(found, tmp_path / "local")
    assert not (tmp_path / "local" / "a" / "b.txt").exists()


def test_an_unreadable_manifest_is_named(tmp_path: Path) -> None:
    found = made(str(tmp_path))
    Path(found.manifest_uri).write_text(json.dumps({"stage": "corpus/x"}))
    with pytest.raises(StorageError, match="not a manifest"):
        read_manifest(found.manifest_uri)


def test_equal_content_has_an_equal_digest(tmp_path: Path) -> None:
    assert made(str(tmp_path / "a")).digest == made(str(tmp_path / "b")).digest
    assert made(str(tmp_path / "a")).digest != made(str(tmp_path / "c"), b"other").digest


def sections(recipe: Recipe) -> dict[str, str]:
    return {stage.name: artifact.digest_of([stage.sections, stage.inputs, stage.raw]) for stage in stages(recipe)}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("cluster.num_workers=7", set()),
        ("name=other", set()),
        ("serve.max_context_tokens=64", set()),
        ("clean.min_chars=300", {"corpus/books", "corpus/papers", "corpus/general"}),
        ("pretrain.optimizer.lr=1e-4", {"pretrain/control", "pretrain/knowledge", "pretrain/instructed"}),
        ("variants.control.weights={general: 1, papers: 1}", {"pretrain/control", "verdict"}),
        ("instruct.optimizer.lr=1e-4", {"instruct/instructed"}),
        ("variants.instructed.instructions={graph: 1}", {"instruct/instructed", "verdict"}),
        ("chats.row_tokens=512", {f"chats/{name}" for name in ("exam_questions", "rationale", "conclusions", "graph", "coding")}),
        ("exams.mmlu_clinical.items=300", {f"evaluate/{name}" for name in ("base", "control", "knowledge", "instructed")}),
        ("exams.mmlu_clinical.subjects=[anatomy]", {"exams/mmlu_clinical"}),
        ("exams.mmlu_clinical.protocol=lm_eval", {f"evaluate/{name}" for name in ("base", "control", "knowledge", "instructed")}),
        ("exams.mmlu_clinical.ids=raw/ids.json", {"exams/mmlu_clinical"}),
        ("probes.items=10", {"probes"}),
        ("budget.minutes=1", set()),
        ("evaluate.confidence=0.9", {"verdict"}),
        ("tokens.row_tokens=64", {"tokens/books", "tokens/papers", "tokens/general"}),
    ],
)
def test_only_what_a_section_decides_changes_its_own_fingerprint(override: str, changed: set[str]) -> None:
    before, after = (sections(load(ROOT / "recipes" / "quickstart.yaml", change)) for change in ([], [override]))
    assert {name for name in before if before[name] != after[name]} == changed


def test_what_two_variants_share_has_one_identity_and_what_differs_has_not() -> None:
    made = {stage.name: stage for stage in stages(load(ROOT / "recipes" / "quickstart.yaml"))}
    shared, other = made["pretrain/knowledge"], made["pretrain/control"]
    twin = made["pretrain/instructed"]
    assert (twin.identity, twin.sections, twin.inputs) == (shared.identity, shared.sections, shared.inputs)
    assert other.identity == shared.identity and other.sections != shared.sections
    assert made["evaluate/instructed"].inputs["model"] == "instruct/instructed"
    assert made["instruct/instructed"].inputs["model"] == "pretrain/instructed"


def test_every_trained_variant_is_a_trial_under_every_seed() -> None:
    recipe = load(ROOT / "recipes" / "quickstart.yaml", ["train_seeds=[3, 4]"])
    assert [(trial.name, trial.seed) for trial in trials(recipe)] == [
        ("base", None), ("control-seed3", 3), ("control-seed4", 4), ("knowledge-seed3", 3), ("knowledge-seed4", 4),
        ("instructed-seed3", 3), ("instructed-seed4", 4),
    ]  # fmt: skip
    made = {stage.name: stage for stage in stages(recipe)}
    assert made["pretrain/control-seed3"].sections != made["pretrain/control-seed4"].sections


def test_stages_come_after_their_inputs() -> None:
    seen: set[str] = set()
    for stage in stages(load(ROOT / "recipes" / "quickstart.yaml")):
        assert set(stage.inputs.values()) <= seen
        seen.add(stage.name)


def test_a_commit_whose_answer_is_lost_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = storage.put_if_absent
    monkeypatch.setattr(storage, "put_if_absent", lambda uri, data: put(uri, data) and False)
    found = made(str(tmp_path))
    assert storage.read_bytes(found.uri("a/b.txt")) == b"rows"


def test_the_order_of_weights_in_the_file_means_nothing() -> None:
    recipes = [
        load(ROOT / "recipes" / "quickstart.yaml", [f"variants.knowledge.weights={weights}"])
        for weights in ("{books: 15, papers: 4, general: 1}", "{general: 1, papers: 4, books: 15}")
    ]
    assert list(recipes[0].variants["knowledge"].weights or {}) == list(recipes[1].variants["knowledge"].weights or {})
    assert sections(recipes[0]) == sections(recipes[1])

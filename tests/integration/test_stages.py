"""The stages on a real Ray, on real formats: what each one writes is checked with plain pyarrow, transformers and loops."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.run import Run
from medschool import artifact
from medschool.errors import InputError, StageError
from medschool.recipe import load

pytestmark = pytest.mark.usefixtures("ray_cluster")


def run_of(store: Path, *overrides: str) -> Run:
    return Run(load(store / "tiny.yaml", overrides), str(store))


@pytest.fixture(scope="module")
def tokenized(tiny_store: Path, ray_cluster: None) -> Run:
    run = run_of(tiny_store)
    for kind in ("model", "tokenizer", "corpus", "tokens"):
        run.make(kind)
    return run


def documents(made: artifact.Artifact, kind: str = "documents") -> pa.Table:
    return pa.concat_tables([pq.read_table(made.uri(file.path)) for file in made.files if file.path.startswith(f"{kind}/")])


def test_copies_and_unlicensed_papers_are_dropped_and_kept_with_their_reason(tokenized: Run) -> None:
    made = tokenized.artifact("corpus/papers")
    kept, dropped = documents(made), documents(made, "dropped")
    assert made.facts["read"] == 241 == kept.num_rows + dropped.num_rows
    assert made.facts["dropped"] == {"duplicate": 2, "licence": 1}
    assert Counter(dropped.column("step").to_pylist()) == {"duplicate": 2, "licence": 1}
    assert "publisher-copyright" in next(row["reason"] for row in dropped.to_pylist() if row["step"] == "licence")
    assert len(set(kept.column("text").to_pylist())) == kept.num_rows


def test_every_token_of_every_document_is_in_the_shards_once(tokenized: Run) -> None:
    made = tokenized.artifact("tokens/papers")
    tokenizer = AutoTokenizer.from_pretrained(Path(tokenized.store_uri) / "raw" / "models" / "tiny")
    held = pa.ipc.open_file(made.uri("heldout.arrow")).read_all()
    expected: Counter[int] = Counter()
    for row in documents(tokenized.artifact("corpus/papers")).to_pylist():
        if row["id"] not in held.column("id").to_pylist():
            expected.update([*tokenizer(row["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
    shards = [pa.ipc.open_file(made.uri(file.path)).read_all() for file in made.files if file.path.startswith("shards/")]
    found = Counter(token for shard in shards for tokens in shard.column("tokens").to_pylist() for token in tokens)
    assert sum((expected - found).values()) == made.facts["tail_tokens"] and not found - expected
    assert len(shards) > 1 and sum(shard.num_rows for shard in shards) == made.facts["rows"]
    seen = {id_ for shard in shards for ids in shard.column("doc_ids").to_pylist() for id_ in ids}
    assert not seen & set(held.column("id").to_pylist())


def test_a_second_run_makes_the_same_bytes(tokenized: Run, tmp_path: Path) -> None:
    from tiny import write_raw

    write_raw(tmp_path)
    again = run_of(tmp_path)
    for kind in ("model", "tokenizer", "corpus", "tokens"):
        again.make(kind)
    for name in ("corpus/papers", "corpus/books", "tokens/papers", "tokens/books", "tokens/general"):
        assert again.artifact(name).digest == tokenized.artifact(name).digest, name


def test_what_is_finished_is_not_made_again(tokenized: Run, capsys: pytest.CaptureFixture[str]) -> None:
    again = Run(tokenized.recipe, tokenized.store_uri)
    again.make("corpus")
    assert capsys.readouterr().out.count("cached") == 3


def test_a_stage_before_its_inputs_says_which_to_run(tiny_store: Path) -> None:
    with pytest.raises(StageError, match=r"jobs\.corpus") as raised:
        run_of(tiny_store, "clean.min_chars=41").make("tokens")
    assert raised.value.where == "corpus/books"


def test_a_corpus_that_is_empty_after_filtering_says_why(tiny_store: Path) -> None:
    run = run_of(tiny_store, "sources.papers.licences=[cc-by]")
    with pytest.raises(StageError, match=r"no document of 241 is left.*'licence': 241"):
        run.make("corpus")


def test_a_corrupt_file_is_named_and_nothing_is_finished(tiny_store: Path, tmp_path: Path) -> None:
    from tiny import write_raw

    write_raw(tmp_path)
    broken = tmp_path / "raw" / "medline" / "1.xml.gz"
    broken.write_bytes(broken.read_bytes()[:-40])
    run = run_of(tmp_path)
    with pytest.raises(Exception) as raised:
        run.make("corpus")
    from jobs.run import cause_of

    cause = cause_of(raised.value)
    assert isinstance(cause, InputError) and cause.problem.startswith("raw/medline/1.xml.gz") and cause.remedy
    assert not list((tmp_path / "artifacts" / "corpus" / "papers").rglob("manifest.json"))


def test_training_on_the_mixture_measures_an_effect_against_the_control(
    tokenized: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tokenized
    run.make("pretrain")
    run.make("evaluate")
    run.make("verdict")
    facts = run.artifact("verdict").facts
    assert facts["gate"]["passed"], facts["gate"]["reason"]
    made = run.artifact("pretrain/knowledge")
    assert made.facts["tokens"] == 12 * 20 * 32 and made.facts["loss_last"] < made.facts["loss_first"]
    assert "step 12/12" in capsys.readouterr().out
    leftovers = [path for path in Path(made.manifest_uri).parent.iterdir() if path.name in ("state", "ray_train")]
    assert leftovers == []


def test_the_export_loads_in_plain_transformers_and_scores_the_same(tokenized: Run, tmp_path: Path) -> None:
    import torch

    made = tokenized.artifact("pretrain/knowledge")
    folder = artifact.fetch_files(made, tmp_path, "export/")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert "not for clinical use" in (folder / "README.md").read_text().lower()
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith("<|im_start|>user")
    held = pa.ipc.open_file(tokenized.artifact("tokens/papers").uri("heldout.arrow")).read_all().to_pylist()
    losses = pq.read_table(tokenized.artifact("evaluate/knowledge").uri("losses.parquet")).to_pylist()
    by_id = {row["id"]: row["nll_nats"] for row in losses if row["source"] == "papers"}
    assert by_id.keys() == {row["id"] for row in held}
    for row in held:
        ids = torch.tensor([row["tokens"]])
        with torch.inference_mode():
            expected = model(ids, labels=ids).loss.double() * (ids.shape[1] - 1)
        assert by_id[row["id"]] == pytest.approx(float(expected), rel=1e-4)


def test_ray_data_without_logical_cpus_is_refused_before_it_hangs(tokenized: Run) -> None:
    run = Run(
        load(Path(tokenized.store_uri) / "tiny.yaml", ["cluster.num_workers=7", "pretrain.optimizer.lr=2e-2"]),
        tokenized.store_uri,
    )
    with pytest.raises(Exception, match=r"need 9 logical CPUs.*the cluster has at most 8"):
        run.make("pretrain")


def test_workers_and_driver_have_the_standard_library_s_platform() -> None:
    import platform

    import ray

    @ray.remote
    def system() -> tuple[str, str]:
        import platform as inside

        return inside.system(), str(inside.__file__)

    found, where = ray.get(system.remote())
    assert found == platform.system() and where == platform.__file__ and "medschool" not in where
    assert not (Path(__file__).parents[2] / "platform" / "__init__.py").exists()


def test_no_row_is_fed_twice_in_an_epoch(tokenized: Run) -> None:
    from medschool.plan import read_index
    from medschool.stage import resolve_all
    from medschool.tokens.order import Order

    resolved = resolve_all(tokenized.recipe, tokenized.store_uri)
    index = read_index(resolved["tokens/books"])
    assert index is not None
    order = Order({"books": 1}, 10, {"books": index.shard_rows}, 1)
    rows = [(ref.shard, ref.row) for batch in range(index.rows // 10) for ref in order.batch(batch)]
    assert len(set(rows)) == len(rows) == index.rows // 10 * 10
    assert np.all(np.array(index.shard_rows) > 0)

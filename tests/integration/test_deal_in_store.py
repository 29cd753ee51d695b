"""Portions and shards in a real S3 store: range reads, markers put once, and shards that the store copies itself."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_store import seaweed

from medschool import storage
from medschool.artifact import write_file
from medschool.tokens.deal import Deal, Group, deal_portion, plan_deal, segments, write_group
from medschool.tokens.pack import Rows
from medschool.tokens.portions import cut_portions, read_portion


def rows(portion: int) -> Rows:
    tokens = np.full((300, 64), portion, dtype=np.uint16)
    return Rows(tokens, np.ones(tokens.shape, bool), [[f"{portion}"]] * 300, [[64]] * 300, 0, 300)


def run(deal: Deal) -> list[Group]:
    dealt = [deal_portion(deal, number, lambda number=number: rows(number)) for number in range(3)]  # type: ignore[misc]
    return [write_group(deal, group, segments(dealt, group)) for group in range(deal.groups)]


def test_a_second_attempt_in_s3_has_the_bytes_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with seaweed(tmp_path / "home") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        bucket = "s3://deal"
        storage.make_bucket(bucket)
        first, second = (plan_deal([0, 1, 2], 4, 1, 3, f"{bucket}/work", f"{bucket}/{name}") for name in "ab")
        made, again = run(first), run(second)
        assert not any(group.reused for group in made) and all(group.reused for group in again)
        for group in made:
            for file in group.files:
                assert storage.size_and_sha256(f"{bucket}/b/{file.path}") == (file.size_bytes, file.sha256)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"]}), sink, row_group_size=1)
        write_file(bucket, "documents/0.parquet", sink.getvalue().to_pybytes())
        portions = cut_portions([f"{bucket}/documents/0.parquet"])
        read = [pair for portion in portions for pair in read_portion(portion, pa.array(["b"]))]
        assert read == [(["a", "c"], ["one", "three"])]

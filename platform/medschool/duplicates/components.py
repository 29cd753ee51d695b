"""From pairs to removals: which documents stay, which go, and for whom.

Pairs are not transitive: A and B may be a pair, B and C, and A and C have half of their text in common. Documents are therefore
visited by preference (medschool.duplicates.candidates: the longest text first), and one goes only when it is in a pair with one
that stays. So everything that goes has a twin that stays, named in `removals.parquet` with its similarity, and no two that stay
are a pair. Where every document of a cluster is like every other, one stays.

What comes out is a function of the pairs alone, whatever their order. It is what one gets by showing the documents one after the
other, by preference, to an index that takes in what it does not hold yet.

Memory: some copies of the pairs (34 bytes each) and of the documents in them (60 bytes and the id each). Price: 3 microseconds a
document that is in a pair.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medschool import storage
from medschool.artifact import Artifact

REMOVALS = "removals.parquet"
CLUSTERS = "clusters.parquet"
REMOVALS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("id", pa.string()),
        ("kept_source", pa.string()),
        ("kept_id", pa.string()),
        ("similarity", pa.float32()),
    ]
)
CLUSTERS_SCHEMA = pa.schema([("cluster", pa.int32()), ("source", pa.string()), ("id", pa.string()), ("kept", pa.bool_())])

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Choice:
    """What becomes of the documents that are in a pair. The arrays have one entry a document, in order of preference."""

    documents: Array
    kept: Array
    """Whether it stays."""
    twin: Array
    """Index of the document that it goes for; its own where it stays."""
    equal: Array
    """Places at which the signatures of the two agree."""
    cluster: Array
    """Which documents pairs connect: numbers from 0, in no order that means anything."""


def choose(pairs: Array) -> Choice:
    """Decide over distinct PAIRs. Of several twins that stay a document names the most similar, then the preferred one."""
    documents, first, second = _by_preference(pairs)
    count = len(documents)
    order = np.lexsort((first, second))
    begins = np.searchsorted(second[order], np.arange(count + 1))
    partners = first[order]
    kept = np.ones(count, bool)
    for document in range(count):  # partners come before it, so they are decided
        kept[document] = not kept[partners[begins[document] : begins[document + 1]]].any()
    twin, equal = np.arange(count), np.zeros(count, np.uint16)
    goes = np.flatnonzero(kept[first])
    goes = goes[np.lexsort((-first[goes], pairs["equal"][goes]))]  # the last one that is written wins
    twin[second[goes]], equal[second[goes]] = first[goes], pairs["equal"][goes]
    graph = coo_array((np.ones(len(pairs), bool), (first, second)), shape=(count, count))
    return Choice(documents, kept, twin, equal, connected_components(graph, directed=False)[1])


def _by_preference(pairs: Array) -> tuple[Array, Array, Array]:
    """Documents of `pairs`, the preferred ones first, and the pairs as indices into them."""
    both = np.concatenate((pairs["first"], pairs["second"]))
    documents, at, inverse = np.unique(both, return_index=True, return_inverse=True)
    order = np.lexsort((documents, np.concatenate((pairs["first_rank"], pairs["second_rank"]))[at]))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return documents[order], place[inverse[: len(pairs)]], place[inverse[len(pairs) :]]


def removals_table(choice: Choice, sources: pa.Array, ids: pa.Array, permutations: int) -> pa.Table:
    """One row a document that goes, sorted by source and id. sources, ids: of choice.documents."""
    goes = np.flatnonzero(~choice.kept)
    twins = choice.twin[goes]
    similarity = (choice.equal[goes] / permutations).astype(np.float32)
    columns = [sources.take(goes), ids.take(goes), sources.take(twins), ids.take(twins), pa.array(similarity)]
    return pa.table(columns, schema=REMOVALS_SCHEMA).sort_by([("source", "ascending"), ("id", "ascending")])


def clusters_table(choice: Choice, sources: pa.Array, ids: pa.Array) -> pa.Table:
    """One row a document that is in a pair. Cluster 0 is the largest; equally large ones stand by their first source and id."""
    by_name = pc.sort_indices(pa.table({"source": sources, "id": ids}), [("source", "ascending"), ("id", "ascending")]).to_numpy()
    cluster = choice.cluster[by_name]
    labels, first, inverse, sizes = np.unique(cluster, return_index=True, return_inverse=True, return_counts=True)
    number = np.empty(len(labels), np.int32)
    number[np.lexsort((first, -sizes))] = np.arange(len(labels))
    columns = [pa.array(number[inverse]), sources.take(by_name), ids.take(by_name), pa.array(choice.kept[by_name])]
    made = pa.table(columns, schema=CLUSTERS_SCHEMA)
    return made.take(np.argsort(number[inverse], kind="stable"))


def size_counts(clusters: pa.Table) -> dict[str, int]:
    """How many clusters there are of each size: `2`, `3-4`, `5-8`, `9-16`..."""
    sizes = np.unique(clusters.column("cluster").to_numpy(), return_counts=True)[1]
    powers, counts = np.unique(np.ceil(np.log2(sizes)).astype(int), return_counts=True)
    return {
        "2" if power == 1 else f"{2 ** (power - 1) + 1}-{2**power}": int(count)
        for power, count in zip(powers, counts, strict=True)
    }


def removed_ids(artifact: Artifact, source: str) -> frozenset[str]:
    """Ids of the documents of one source that a `duplicates` artifact leaves out."""
    rows = storage.read_parquet(artifact.uri(REMOVALS), ["source", "id"])
    return frozenset(rows.filter(pc.field("source") == source).column("id").to_pylist())

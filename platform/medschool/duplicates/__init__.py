"""Near-duplicates over all sources together: which documents say what another one says already, and which of them goes.

    documents of every source ──minhash──> signature, bands ──candidates──> verified pairs ──components──> removals, clusters
        text                                512 bytes, 14 hashes              two documents, similarity

    "... of the renal cortex in mice ..."       a3 91 07 | 5e ...        papers/12 ~ general/7   0.93      general/7 goes
    "... of the Renal Cortex, in mice. ..."     a3 91 07 | 2c ...  same bucket: a candidate

Concepts
    shingle     `ngram_words` words in a row. Two documents are as similar as their sets of shingles: shared / all (Jaccard).
    signature   `permutations` numbers; two signatures agree at a place with the probability of that similarity (Broder 1997).
    band        some places of a signature under one hash. Documents with an equal band share a bucket and are a candidate pair:
                the cost is linear in documents, because only documents of one bucket are ever compared.
    pair        two documents whose signatures agree at `similarity` of their places or more.
    cluster     documents that pairs connect. Inside it the longest document stays, then the longest that is in no pair with one
                that stays, and so on. So whatever goes has a stated twin that stays, and no two that stay are a pair.

Exact duplicates of one source are gone before (medschool.corpus); those of two sources are pairs of similarity 1 here. Canaries
(`article_type` canary) are copies on purpose and are never compared.

Example
    >>> import pyarrow as pa
    >>> from medschool.duplicates.minhash import shingles, signatures, similarity
    >>> texts = ["the cat sat on the mat and slept", "The cat sat on the mat, and slept.", "a dog ran over the green hill"]
    >>> pair = signatures(*shingles(pa.array(texts, pa.large_string()), 3), 128)
    >>> similarity(pair[:1], pair[1:2]).tolist(), similarity(pair[:1], pair[2:]).tolist()
    ([1.0], [0.0])
"""

from medschool.duplicates.components import removed_ids as removed_ids

"""Negative log-likelihood of documents, one by one.

A document of n tokens has n-1 targets (its first token has no context). Documents of similar length are scored together, padded
on the right: a causal model never sees what stands behind, so padding changes nothing but the waste.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

LOSSES_SCHEMA = pa.schema([("source", pa.string()), ("id", pa.string()), ("nll_nats", pa.float64()), ("targets", pa.int64())])
BATCH_TOKENS = 2048
"""Padded tokens taken through the model at once; bounds the logits in memory (2048 x 49152 in fp32 is 0.4 GB)."""


def document_losses(model: Any, documents: list[np.ndarray]) -> list[float]:
    """Sum of the negative log-likelihood of each document's targets, in nats, in fp32; 0 for a document of one token."""
    losses = [0.0] * len(documents)
    by_length = sorted(range(len(documents)), key=lambda index: -len(documents[index]))
    while by_length:
        take = max(1, BATCH_TOKENS // len(documents[by_length[0]]))
        group, by_length = by_length[:take], by_length[take:]
        for index, loss in zip(group, _group_losses(model, [documents[index] for index in group]), strict=True):
            losses[index] = loss
    return losses


def _group_losses(model: Any, documents: list[np.ndarray]) -> list[float]:
    longest = max(map(len, documents))
    ids = torch.zeros((len(documents), longest), dtype=torch.int64)
    targets = torch.full((len(documents), longest), -100)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.from_numpy(document.astype(np.int64))
        targets[row, : len(document) - 1] = ids[row, 1 : len(document)]
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits.float()
        flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return [float(loss) for loss in flat.view(len(documents), longest).double().sum(dim=1)]

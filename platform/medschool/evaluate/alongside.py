"""Held-out loss of a model that is still in training, source by source, measured beside it.

    folder with the model after a step --load--> loss of a fixed sample of held-out documents --> heldout.jsonl, MLflow

The sample is the first SAMPLE_TOKENS of each source's held-out documents, which are ranked by a hash: the same at every step and
in every run. So a curve of it can be read; the final scores, on all held-out documents, are the evaluation's. It is for people to
look at and enters nothing that the run makes.

In MLflow it stands in the trial's run as `heldout/<phase>/<source>`, in the store as heldout.jsonl in the folder of the
training's artifact, beside the manifest and not named by it. A step that was measured is not measured again, also when the
training goes back to a checkpoint and comes by once more: its weights are the same.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from medschool import storage
from medschool.artifact import Artifact
from medschool.evaluate.perplexity import document_losses
from medschool.recipe.training import Model
from medschool.tokens.on_ray import heldout_rows
from medschool.track import Journal, TrackedRun, read_journal
from medschool.train.model import load_model

SAMPLE_TOKENS = 8192
"""Of each source: 6 s of a core at 135 million weights, and an interval of some 3% of the loss."""
HELDOUT_JOURNAL = "heldout.jsonl"


def sample(heldout: dict[str, Artifact]) -> dict[str, list[np.ndarray]]:
    """The first documents of each source, at least one, that hold SAMPLE_TOKENS together. `heldout`: their token artifacts."""
    found = {}
    for source, made in heldout.items():
        documents = [np.asarray(tokens) for tokens in heldout_rows(made).column("tokens").to_pylist()]
        before = np.cumsum([0, *map(len, documents)])
        found[source] = [document for document, start in zip(documents, before, strict=False) if start < SAMPLE_TOKENS]
    return found


class Alongside:
    """Measures one model after the other. `run_uri`: the folder of the training's artifact."""

    def __init__(self, model: Model, heldout: dict[str, Artifact], run_uri: str, run: TrackedRun | None, phase: str) -> None:
        self._dtype, self._documents = model.dtype, sample(heldout)
        self._uri = storage.join(run_uri, HELDOUT_JOURNAL)
        self._folder = Path(tempfile.mkdtemp(prefix="medschool-heldout-"))
        self._path = self._folder / HELDOUT_JOURNAL
        if storage.exists(self._uri):
            self._path.write_bytes(storage.read_bytes(self._uri))
        self._journal = Journal(self._path, run, f"heldout/{phase}/")

    def measure(self, step: int, folder_uri: str) -> None:
        """Mean loss of the model in `folder_uri` for each source, in nats per target, put to the journal."""
        if any(point["step"] == step for point in read_journal(self._path.read_bytes())):
            return
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            for info in storage.list_files(folder_uri):
                storage.download(info.uri, Path(folder, info.uri.rsplit("/", 1)[1]))
            model = load_model(Path(folder), self._dtype).eval()
        self._journal.log(step, {source: _mean(model, documents) for source, documents in self._documents.items()})
        storage.write_bytes(self._uri, self._path.read_bytes())

    def close(self) -> None:
        """Give the journal its time to reach MLflow, and clean up."""
        self._journal.__exit__()
        shutil.rmtree(self._folder, ignore_errors=True)


def _mean(model: object, documents: list[np.ndarray]) -> float:
    targets = sum(max(0, len(document) - 1) for document in documents)
    return sum(document_losses(model, documents)) / max(1, targets)

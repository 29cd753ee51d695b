"""Names of people and places, found by a statistical model: presidio-analyzer with spaCy, the extra `deidentify`.

    pip install 'medschool[deidentify]' and the spaCy model MODEL, which is a package of its own

Presidio fetches a model that it misses, takes a GPU that it finds, and brings recognizers of some twenty other kinds. Here the
model is loaded before presidio sees it, so a job on a cluster never reaches for the network, and of the model and of presidio
only that runs which finds names. A text is cut at paragraphs so that memory is bounded, and what spaCy remembers of its words is
given back (from spaCy 3.8 on).

Price: the first text of a worker takes 6 seconds, most of it imports. With a small model that only finds names a core read
100,000 characters a second, a twentieth of what the patterns alone read; MODEL is larger and was not measured here. What this
cannot do is what its model cannot: it misses names, and may take the one in a disease (Parkinson) for a person.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from medschool.errors import ServiceError

MODEL = "en_core_web_lg"
PIECE_CHARS = 50_000
"""Longest text given to the model at once; spaCy refuses a million characters."""
KINDS = {"PERSON": "name", "LOCATION": "place"}
LABELS = {"PERSON": "PERSON", "PER": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION"}
"""Labels of spaCy's models -> presidio's names for them; the other labels of a model (numbers, laws, languages) are ignored."""
FINDERS = ("tok2vec", "transformer", "ner", "entity_ruler")
"""Components of a model that find names; the others (tagger, parser, lemmatizer) take most of its time."""
MIN_SCORE = 0.5
"""Presidio gives every name that spaCy finds 0.85."""
_WHERE = "clean.identifiers.names"


def find_names(text: str) -> Iterator[tuple[str, int, int]]:
    """(class, start, end) of each name. Raises ServiceError when presidio or its model is not installed or does not load."""
    engine = _engine()
    for start, stop in _pieces(text):
        with _forgetting(engine.nlp_engine.get_nlp("en")):
            found = engine.analyze(text=text[start:stop], language="en", entities=list(KINDS), score_threshold=MIN_SCORE)
        for name in sorted(found, key=lambda name: name.start):
            yield KINDS[name.entity_type], start + name.start, start + name.end


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Stretches of at most PIECE_CHARS, cut between paragraphs where there are any, else between words."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        limit = start + PIECE_CHARS
        cuts = (text.rfind(mark, start + 1, limit) for mark in ("\n\n", "\n", " "))
        stop = next((cut for cut in cuts if cut > start), limit)
        yield start, stop
        start = stop
    if start < len(text):
        yield start, len(text)


def _forgetting(nlp: Any) -> AbstractContextManager[Any]:
    """Within it spaCy's memory of words that it has not seen before does not grow."""
    return nlp.memory_zone() if hasattr(nlp, "memory_zone") else nullcontext()


@functools.cache
def _engine() -> Any:
    _check_installed()
    os.environ.setdefault("PRESIDIO_DEVICE", "cpu")  # else it puts a tensor on a GPU that it sees, when it is imported
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    try:
        nlp = importlib.import_module("spacy").load(MODEL)
    except (ImportError, OSError, ValueError) as error:
        remedy = f"install the {MODEL} of this spaCy on every node: python -m spacy download {MODEL}"
        raise ServiceError(f"the spaCy model {MODEL} cannot be loaded ({error})", remedy, _WHERE) from error
    nlp.select_pipes(enable=[name for name in nlp.pipe_names if name in FINDERS])
    labels = {label for names in nlp.pipe_labels.values() for label in names}
    asked = NerModelConfiguration(model_to_presidio_entity_mapping=LABELS, labels_to_ignore=sorted(labels - LABELS.keys()))
    finder = SpacyNlpEngine(ner_model_configuration=asked)
    finder.nlp = {"en": nlp}  # loaded: presidio does not look for the model itself
    registry = RecognizerRegistry([SpacyRecognizer(supported_entities=list(KINDS))], supported_languages=["en"])
    return AnalyzerEngine(registry=registry, nlp_engine=finder, supported_languages=["en"])


def _check_installed() -> None:
    """Raises ServiceError, naming what is missing. The model has to be an installed package, not only importable."""
    if importlib.util.find_spec("presidio_analyzer") is None:
        remedy = "pip install 'medschool[deidentify]' on every node, or set clean.identifiers.names to false"
        raise ServiceError("presidio_analyzer is not installed, names cannot be looked for", remedy, _WHERE)
    try:
        importlib.metadata.distribution(MODEL)
    except importlib.metadata.PackageNotFoundError as error:
        remedy = f"install the spaCy model {MODEL} on every node: python -m spacy download {MODEL}"
        raise ServiceError(f"{MODEL} is not installed, names cannot be looked for", remedy, _WHERE) from error

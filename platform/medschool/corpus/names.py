"""Names of people and places, found by a statistical model: presidio-analyzer with spaCy, the extra `deidentify`.

    pip install 'medschool[deidentify]' and the spaCy model MODEL, which is a package of its own

Presidio fetches a model that it misses; here a model that is not installed is an error instead, because a job on a cluster must
not reach for the network. Price: a thousand times that of the patterns; a text is cut at paragraphs so that memory is bounded.
"""

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

from medschool.errors import ServiceError

MODEL = "en_core_web_lg"
PIECE_CHARS = 50_000
"""Longest text given to the model at once; spaCy refuses a million characters."""
KINDS = {"PERSON": "name", "LOCATION": "place"}
MIN_SCORE = 0.5


def find_names(text: str) -> Iterator[tuple[str, int, int]]:
    """(class, start, end) of each name. Raises ServiceError when presidio or its model is not installed."""
    engine = _engine()
    for start, stop in _pieces(text):
        for found in engine.analyze(text=text[start:stop], language="en", entities=list(KINDS), score_threshold=MIN_SCORE):
            yield KINDS[found.entity_type], start + found.start, start + found.end


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Stretches of at most PIECE_CHARS, cut between paragraphs where there are any."""
    start = 0
    while start < len(text):
        stop = text.rfind("\n\n", start, start + PIECE_CHARS) if len(text) - start > PIECE_CHARS else len(text)
        stop = stop if stop > start else min(start + PIECE_CHARS, len(text))
        yield start, stop
        start = stop


@functools.cache
def _engine() -> Any:
    for module, remedy in (
        ("presidio_analyzer", "pip install 'medschool[deidentify]' on every node, or set clean.identifiers.names to false"),
        (MODEL, f"install the spaCy model {MODEL} on every node: python -m spacy download {MODEL}"),
    ):
        if importlib.util.find_spec(module) is None:
            raise ServiceError(f"{module} is not installed, names cannot be looked for", remedy, "clean.identifiers.names")
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    models = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": MODEL}]}
    return AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=models).create_engine(), supported_languages=["en"])

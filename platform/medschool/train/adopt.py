"""The base model and its tokenizer as artifacts: the files stay, a manifest with their hashes is added.

Nothing is copied; whoever loads the files later compares their hashes, so a base model that changes under a run is noticed.

A model with random weights is drawn here, once, and stored as safetensors like any other: training on whatever hardware, scoring
and the comparison then start from the same bytes. The price is that one process holds the whole model once, in fp32.
"""

import tempfile
from pathlib import Path

from medschool import storage
from medschool.artifact import ArtifactFile, Output, upload_folder
from medschool.errors import InputError
from medschool.recipe import Recipe
from medschool.tokens.tokenizer import TOKENIZER_FILES
from medschool.train.model import check_model_files, random_model


def model_folder(recipe: Recipe, store_uri: str) -> str:
    return storage.join(store_uri, recipe.model.uri).rstrip("/")


def adopt_model(recipe: Recipe, store_uri: str) -> Output:
    """All files of the base model. Raises InputError without config.json or safetensors."""
    folder = model_folder(recipe, store_uri)
    names = _names(folder)
    check_model_files(list(names), folder)
    return Output(tuple(_described(uri, name) for name, uri in sorted(names.items()) if name != "MANIFEST.json"))


def draw_model(recipe: Recipe, store_uri: str, prefix_uri: str) -> Output:
    """The base model's other files with random weights beside them, below `prefix_uri`. Raises InputError without config.json."""
    folder = model_folder(recipe, store_uri)
    names = _names(folder)
    check_model_files(list(names), folder, "random")
    with tempfile.TemporaryDirectory(prefix="medschool-model-") as scratch:
        made = Path(scratch)
        for name, uri in names.items():
            if Path(name).suffix in (".json", ".jinja", ".model") and not name.endswith(".index.json"):
                (made / name).write_bytes(storage.read_bytes(uri))
        random_model(made, recipe.model.dtype, recipe.seed).save_pretrained(made)
        return Output(upload_folder(prefix_uri, made))


def _names(folder: str) -> dict[str, str]:
    """URI of each file that lies right in a folder, by name."""
    return {
        info.uri.rsplit("/", 1)[1]: info.uri for info in storage.require_files(folder) if info.uri.rsplit("/", 1)[0] == folder
    }


def adopt_tokenizer(recipe: Recipe, store_uri: str) -> Output:
    """The tokenizer's files alone, so that other weights with the same tokenizer reuse the token rows."""
    folder = model_folder(recipe, store_uri)
    present = [name for name in TOKENIZER_FILES if storage.exists(storage.join(folder, name))]
    if "tokenizer.json" not in present:
        raise InputError("no tokenizer.json", "save the tokenizer with save_pretrained of a fast tokenizer", folder)
    return Output(tuple(_described(storage.join(folder, name), name) for name in present))


def _described(uri: str, name: str) -> ArtifactFile:
    return ArtifactFile(name, *storage.size_and_sha256(uri))

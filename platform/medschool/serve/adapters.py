"""Low-rank adapters beside the model that is served: whether they belong to it, and their files on this node.

    name -> URI --find, once, when the application is deployed--> Adapter: files with their sha256, rank
    Adapter --pull, once a node, as the hashes say--> adapter_config.json, adapter_model.safetensors --> the engine

The model's W stays, and an adapter's (alpha / rank) B A is added while an answer is written (Hu et al. 2021). So one copy of the
weights answers under many names, in one batch. A URI is

- the manifest of a training with `lora`: it has the adapter beside the merged model, with hashes, and names the weights that it
  began from, which must be the very weights that are served;
- or a folder that peft wrote. Its hashes are taken when the application is deployed, and replicas that start later compare with
  them. What it was trained on it does not say: one that fits by its shapes alone answers nonsense, and nobody is told.

Price: (in + out) x rank values for each adapted layer, in the engine's memory for as many adapters as one batch may have.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medschool import storage
from medschool.artifact import Artifact, ArtifactFile, local_copy, read_manifest
from medschool.errors import InputError, ServiceError
from medschool.serve.engine import Engine
from medschool.serve.probe import probe
from medschool.serve.template import Text
from medschool.train.adapter_files import CONFIG, FOLDER, PICKLED, TEMPLATE, WEIGHTS, checked_layers, checked_rank


@dataclass(frozen=True)
class Adapter:
    """One adapter, by the name that clients ask for."""

    name: str
    made: Artifact
    """Its files alone."""
    under: str
    """What their paths begin with."""
    rank: int

    @property
    def version(self) -> str:
        """Names its weights."""
        return self.made.digest[:16]


@dataclass(frozen=True)
class Pulled:
    """One adapter on this node's disk."""

    name: str
    folder: Path
    rank: int
    layers: tuple[str, ...]
    """Kinds of layers that it is on, such as `q_proj`."""


def find(adapters: Mapping[str, str], store_uri: str, base: Artifact) -> tuple[Adapter, ...]:
    """The adapters of these names and URIs (absolute, or below the store). base: what is served.

    Raises InputError for one that is not there, is no safetensors, belongs to other weights, or is more than A and B.
    """
    return tuple(_found(name, storage.join(store_uri, uri), base) for name, uri in adapters.items())


def _found(name: str, uri: str, base: Artifact) -> Adapter:
    trained = uri.endswith("/manifest.json")
    made, under = (_of_training(uri, base), f"{FOLDER}/") if trained else (_of_folder(uri.rstrip("/")), "")
    try:
        config = json.loads(storage.read_bytes(made.uri(f"{under}{CONFIG}")))
    except ValueError as error:
        raise InputError(f"{CONFIG} is no JSON ({error})", "save the adapter again", uri) from error
    return Adapter(name, made, under, checked_rank(config, uri))


def _of_training(uri: str, base: Artifact) -> Artifact:
    """The adapter of a finished training."""
    try:
        made = read_manifest(uri)
    except FileNotFoundError as error:
        raise InputError("no such manifest", "name the manifest of a finished training with `lora`", uri) from error
    files = tuple(file for file in made.files if file.path.startswith(f"{FOLDER}/"))
    if not files:
        raise InputError("it has no adapter", "name a training with `lora`; one of an older version trains again", uri)
    if (began := made.inputs.get("model", "none")) != base.digest:
        problem = f"the adapter was trained on the weights {began[:16]}, served are {base.digest[:16]}"
        raise InputError(problem, "serve the model that its training began from, or the merged model of that training", uri)
    return replace(made, files=files)


def _of_folder(uri: str) -> Artifact:
    """A folder that peft wrote, with the hashes that its files have now."""
    names = [name for name in (CONFIG, WEIGHTS, TEMPLATE) if storage.exists(storage.join(uri, name))]
    if missing := {CONFIG, WEIGHTS} - set(names):
        pickled = storage.exists(storage.join(uri, PICKLED))
        found = f" (only {PICKLED}, which is a pickle and can run code)" if pickled else ""
        problem = f"no {' and no '.join(sorted(missing))}{found}"
        raise InputError(problem, "name a folder that peft's save_pretrained wrote, with safetensors", uri)
    files = tuple(ArtifactFile(name, *storage.size_and_sha256(storage.join(uri, name))) for name in names)
    return Artifact("adapter", "", uri, uri, files, {}, {}, 0.0)


def pull(adapter: Adapter, template: str | None) -> Pulled:
    """The adapter's files on this node's disk, verified. template: the chat template of the served model.

    Raises InputError for a file that is not the one that was deployed, and as `checked_layers`.
    """
    folder = local_copy(adapter.made, adapter.under)
    layers = checked_layers(folder, template, adapter.made.manifest_uri)
    return Pulled(adapter.name, folder, adapter.rank, layers)


def probe_each(engine: Engine, text: Text, context_tokens: int, names: Sequence[str]) -> None:
    """The warm-up probe of each adapter. Raises ServiceError that names the one that fails."""
    for name in names:
        try:
            probe(engine, text, context_tokens, adapter=name)
        except ServiceError as error:
            remedy = "leave it out of serve.adapters, or train it again"
            raise ServiceError(f"adapter {name}: {error.problem}", remedy, "serve.adapters") from error

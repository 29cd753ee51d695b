"""Models in MLflow's registry: a version points at an artifact in the store, an alias says which version is served.

No weights are copied. A version's `manifest_uri` tag names the manifest; whoever loads the model compares every hash with it.
Which versions had an alias before stands in a tag of the model, `before.<alias>`, so that it can be given back.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medschool.artifact import Artifact
from medschool.errors import ServiceError
from medschool.track import TrackedRun, mlflow_client

MANIFEST_TAG = "manifest_uri"
BEFORE = "before."


def register(artifact: Artifact, name: str, alias: str, run: TrackedRun | None, tags: dict[str, str]) -> str:
    """Give `alias` to the version that points at this artifact, creating it if it is new; the version's number.

    Raises ServiceError when MLflow does not answer or refuses.
    """
    with _told(name):
        return _register(_client(), artifact, name, alias, run, tags)


def roll_back(name: str, alias: str) -> tuple[str, str]:
    """Give `alias` back to the version that had it before; (the version that has it no more, the one that has it again).

    Raises ServiceError when no other version had it, or MLflow does not answer or refuses.
    """
    with _told(name):
        client = _client()
        model = client.get_registered_model(name)
        now, before = model.aliases.get(alias), _before(model, alias)
        if now is None or not before:
            had = f"version {now} is the only one that had it" if now else "no version has it"
            raise ServiceError(f"the alias cannot be given back: {had}", "promote a model under it first", f"{name}@{alias}")
        client.set_registered_model_alias(name, alias, before[-1])
        client.set_registered_model_tag(name, f"{BEFORE}{alias}", json.dumps(before[:-1]))
        return str(now), before[-1]


@contextmanager
def _told(name: str) -> Iterator[None]:
    """MLflow's errors as ServiceError with a remedy."""
    from mlflow.exceptions import MlflowException, RestException

    try:
        yield
    except MlflowException as error:
        refused = isinstance(error, RestException)
        raise ServiceError(
            f"MLflow refuses the model ({error})" if refused else "MLflow does not answer",
            "correct that and submit again" if refused else "start it and submit again: everything before is cached",
            name,
        ) from error


def _register(client: Any, artifact: Artifact, name: str, alias: str, run: TrackedRun | None, tags: dict[str, str]) -> str:
    _ensure_model(client, name)
    versions = client.search_model_versions(f"name = '{name}'")
    known = next((v for v in versions if v.tags.get(MANIFEST_TAG) == artifact.manifest_uri), None)
    if known is None:
        known = client.create_model_version(
            name,
            artifact.uri("export"),
            run_id=run.id(client) if run else None,
            tags={MANIFEST_TAG: artifact.manifest_uri, **tags},
            await_creation_for=0,
        )
    else:
        for key, value in tags.items():
            client.set_model_version_tag(name, known.version, key, value)
    model = client.get_registered_model(name)
    had = model.aliases.get(alias)
    if had is not None and str(had) != str(known.version):
        client.set_registered_model_tag(name, f"{BEFORE}{alias}", json.dumps([*_before(model, alias), str(had)]))
    client.set_registered_model_alias(name, alias, known.version)
    return str(known.version)


def _before(model: Any, alias: str) -> list[str]:
    """Versions that had the alias, the last one last."""
    found: list[str] = json.loads(model.tags.get(f"{BEFORE}{alias}", "[]"))
    return found


def manifest_of(model_uri: str) -> tuple[str, str]:
    """(manifest URI, version) of `models:/<name>@<alias>`. Raises ServiceError when there is no such alias."""
    name, _, alias = model_uri.removeprefix("models:/").partition("@")
    try:
        version = _client().get_model_version_by_alias(name, alias)
        return version.tags[MANIFEST_TAG], str(version.version)
    except Exception as error:
        raise ServiceError(
            f"the registry knows no such model ({type(error).__name__})",
            "run the recipe until its gate passes; `medschool status` shows aliases",
            model_uri,
        ) from error


def _ensure_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _client() -> Any:
    try:
        return mlflow_client()
    except KeyError as error:
        raise ServiceError("MLFLOW_TRACKING_URI is not set", "run `medschool up`, or point it to your MLflow server") from error

"""Models in MLflow's registry: a version points at an artifact in the store, an alias says which version is served.

No weights are copied. A version's `manifest_uri` tag names the manifest; whoever loads the model compares every hash with it.
"""

from typing import Any

from medschool.artifact import Artifact
from medschool.errors import ServiceError
from medschool.track import TrackedRun, mlflow_client

MANIFEST_TAG = "manifest_uri"


def register(artifact: Artifact, name: str, alias: str, run: TrackedRun | None, tags: dict[str, str]) -> str:
    """Give `alias` to the version that points at this artifact, creating it if it is new; the version's number.

    Raises ServiceError when MLflow does not answer or refuses.
    """
    from mlflow.exceptions import MlflowException, RestException

    try:
        return _register(_client(), artifact, name, alias, run, tags)
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
    client.set_registered_model_alias(name, alias, known.version)
    return str(known.version)


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
    from mlflow.exceptions import RestException

    try:
        client.create_registered_model(name)
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _client() -> Any:
    try:
        return mlflow_client()
    except KeyError as error:
        raise ServiceError("MLFLOW_TRACKING_URI is not set", "run `medschool up`, or point it to your MLflow server") from error

"""Trials as Ray Tune runs them: a study makes each variant whole, a search stops bad settings early.

    Tuner --as many at once as the cluster holds, a process each--> do(trial) --own Train workers, own scorers--> artifacts

What a trial made lies in the store under its fingerprint, so a study that was interrupted is simply started again: what is
finished is found, not repeated. Where two trials need the same artifact, the first of them in the recipe's order makes it and the
others wait for it, or make it themselves once that trial has ended without it.

A study's processes take one trial after the other, because each would import for seconds what the last one has; one whose trial
raised is not used again. Those of a search are not, because a trial that was stopped early may still be at work in its thread.

The processes of trials ask for the custom resource `driver`, which the head node offers: they hold nothing but the thread of a
training, and on a worker node they could vanish with it. A cluster without that resource gives a tenth of a CPU.
"""

import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from medschool import storage
from medschool.board import this_node
from medschool.errors import MedschoolError, StageError, cause_of
from medschool.gauges import AGAIN_S, TrialStates
from medschool.recipe.training import Search

DRIVER = "driver"
"""Custom resource of nodes that are not taken away."""
POLL_S = 1.0

Do = Callable[[str, "Trials"], None]


@dataclass(frozen=True)
class Trials:
    """The other trials of a study, as one of them sees them."""

    ended: Any
    """Actor that knows which trials have ended."""

    def wait_for(self, found: Callable[[], bool], trial: str) -> bool:
        """Wait until `found()`, or until `trial` has ended; whether it was found."""
        while not found():
            if ray.get(self.ended.has.remote(trial)):
                return found()
            time.sleep(POLL_S)
        return True


@ray.remote(num_cpus=0)
class _Ended:
    def __init__(self) -> None:
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        self._names.add(name)

    def has(self, name: str) -> bool:
        return name in self._names


def run_study(run: str, names: Sequence[str], do: Do, at_once: int, store_uri: str) -> None:
    """`do` every trial of the recipe called `run`.

    Raises the error of the first one that failed, naming all of them, once all others have ended.
    """
    from ray import tune

    ended = _Ended.options(scheduling_strategy=this_node()).remote()  # type: ignore[attr-defined]

    def trial(config: dict[str, Any]) -> dict[str, Any]:
        do(config["trial"], Trials(ended))
        return {"done": 1}

    folder = storage.join(store_uri, "tune")
    name = f"study-{uuid.uuid4().hex[:8]}"
    tuner = tune.Tuner(
        tune.with_resources(trial, _driver()),
        param_space={"trial": tune.grid_search(list(names))},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once, reuse_actors=True, trial_dirname_creator=_dirname),
        run_config=_run_config(name, folder, [_end_callback(ended), _count_callback(run)]),
    )
    try:
        failed = {result.config["trial"]: result.error for result in tuner.fit() if result.error}
    finally:
        storage.delete_prefix(storage.join(folder, name))
    if failed:
        raise _failure(failed)


def _failure(failed: dict[str, Any]) -> MedschoolError:
    name, error = next(iter(failed.items()))
    known = cause_of(error)
    others = f" (and {len(failed) - 1} more: {', '.join(list(failed)[1:])})" if len(failed) > 1 else ""
    if known is None:
        last = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        return StageError(f"a trial failed: {last.strip()}{others}", "its log in Ray's dashboard has the stack", name)
    return type(known)(known.problem + others, known.remedy, known.where or name)


# ---- search -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """One trial of a search."""

    values: dict[str, Any]
    """Recipe key -> value."""
    steps: int
    """Optimizer steps done when it ended or was stopped."""
    losses: dict[int, float]
    """Step -> mean training loss since the report before, in nats per target."""
    stopped: bool
    """Whether it was stopped early."""
    failed: str = ""
    """What it failed with; empty where it did not."""


def run_search(
    spec: Search,
    settings: Sequence[dict[str, Any]],
    steps: int,
    do: Callable[[dict[str, Any]], None],
    at_once: int,
    folder_uri: str,
) -> tuple[list[Tried], MedschoolError | None]:
    """Try every setting for `steps` optimizer steps, the worse ones stopped early; results in the order of `settings`.

    A setting that fails holds up no other one; the second value is the error of the first that did, naming all of them.

    A trial is compared with those that reported before it at the same step (asynchronous successive halving). `folder_uri` keeps
    the standing of the search: an interrupted one goes on, and a trial that ended or was stopped is not repeated.
    """
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler

    def trial(config: dict[str, Any]) -> None:
        do(config["values"])

    folder, name = folder_uri.rstrip("/").rsplit("/", 1)
    trainable = tune.with_resources(trial, _driver())
    if tune.Tuner.can_restore(folder_uri):
        tuner = tune.Tuner.restore(folder_uri, trainable, resume_unfinished=True, restart_errored=True)
    else:
        scheduler = AsyncHyperBandScheduler(
            time_attr="step", max_t=steps, grace_period=spec.grace_steps, reduction_factor=spec.reduction_factor
        )
        tuner = tune.Tuner(
            trainable,
            param_space={"values": tune.grid_search(list(settings))},
            tune_config=tune.TuneConfig(
                metric="loss", mode="min", scheduler=scheduler, max_concurrent_trials=at_once, trial_dirname_creator=_dirname
            ),
            run_config=_run_config(name, folder, []),
        )
    results = {str(result.config["values"]): result for result in tuner.fit()}
    failed = {name: result.error for name, result in results.items() if result.error}
    return [_tried(results[str(values)], steps) for values in settings], _failure(failed) if failed else None


def _tried(result: Any, steps: int) -> Tried:
    frame = result.metrics_dataframe
    told = frame is not None and "step" in frame  # one that failed at once has reported nothing
    losses = {int(step): float(loss) for step, loss in zip(frame["step"], frame["loss"], strict=True)} if told else {}
    last = max(losses, default=0)
    failed = _failure({str(result.config["values"]): result.error}).problem if result.error else ""
    return Tried(result.config["values"], last, losses, last < steps and not failed, failed)


# ---- Tune's settings ----------------------------------------------------------------------------------------------------------


def _run_config(name: str, folder: str, callbacks: list[Any]) -> Any:
    from ray import tune
    from ray.tune.execution import class_cache

    # Tune would write the driver's S3 keys into each trial's runtime environment, which Ray logs; a node has its own
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
        {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
    )
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints a box and hints for TensorBoard even when it is silent
    return tune.RunConfig(
        name=name, storage_path=folder, callbacks=callbacks, verbose=0, failure_config=tune.FailureConfig(max_failures=0)
    )


def _driver() -> dict[str, float]:
    return {"CPU": 0, DRIVER: 1} if ray.cluster_resources().get(DRIVER) else {"CPU": 0.1}


def _dirname(trial: Any) -> str:
    """Short: Tune's own name spells out every value."""
    return str(trial.trial_id)


def _end_callback(ended: Any) -> Any:
    from ray.tune import Callback

    class Ends(Callback):  # type: ignore[misc]
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            ended.add.remote(trial.config["trial"])

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            ended.add.remote(trial.config["trial"])

    return Ends()


def _count_callback(run: str) -> Any:
    from ray.tune import Callback

    class Counts(Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self._states, self._told_s = TrialStates(run), float("-inf")

        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            if time.monotonic() - self._told_s >= AGAIN_S:
                self._told_s = time.monotonic()
                self._states.show([str(trial.status) for trial in trials])

    return Counts()

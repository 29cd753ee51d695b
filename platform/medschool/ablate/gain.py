"""What each told change cost: the change divided by the hours of training that made it, that of perplexity as loss.

    finished trainings of the variant, without those that the reference shares --workers x seconds--> hours --> gain an hour

Worker-seconds are those that the artifact says it was held for (medschool.train.held): starts, checkpoints and what was lost
included, averaged over seeds. An artifact of a time before that was recorded is taken as made by the
recipe's workers, of an elastic run the most, for its stage's seconds.
Only changes that were told have a gain: a number divided by hours is no better known than before. A variant's gain is a mean
over its training, not what one more hour would bring.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from medschool.ablate.cost import worker_seconds
from medschool.ablate.verdict import Measure
from medschool.artifact import Artifact
from medschool.procedure import PHASES, phase_weights, trials
from medschool.recipe import Recipe


@dataclass(frozen=True)
class Gain:
    """One told change and its cost."""

    measure: Measure
    on: str
    variant: str
    reference: str
    change: float
    worker_hours: float
    accelerator_hours: float
    """0 where the recipe's workers have none."""

    @property
    def hours(self) -> float:
        """Of accelerators, or of workers where there are none."""
        return self.accelerator_hours or self.worker_hours

    @property
    def per_hour(self) -> float:
        """Perplexity: nats of loss per token, which add up over hours as relative changes do not. Accuracy: a share."""
        return (math.log1p(self.change) if self.measure == "perplexity" else self.change) / self.hours


def gains(recipe: Recipe, verdict: dict[str, Any], find: Callable[[str], Artifact]) -> tuple[Gain, ...]:
    """Of every effect with the word helped or hurt, in their order; `find` gives a finished stage by its name."""
    told = [effect for effect in verdict["effects"] if effect["word"] != "cannot tell"]
    return tuple(gain for effect in told for gain in _gain(recipe, effect, find))


def _gain(recipe: Recipe, effect: dict[str, Any], find: Callable[[str], Artifact]) -> Iterator[Gain]:
    workers_s, accelerators_s = _seconds(recipe, effect["variant"], effect["reference"], find)
    if workers_s <= 0:
        return
    names = {key: effect[key] for key in ("measure", "on", "variant", "reference", "change")}
    yield Gain(**names, worker_hours=workers_s / 3600, accelerator_hours=accelerators_s / 3600)


def _seconds(recipe: Recipe, variant: str, reference: str, find: Callable[[str], Artifact]) -> tuple[float, float]:
    """Worker-seconds and accelerator-seconds of the variant's trainings that are not the reference's too; mean over seeds."""
    mine, other = (_trainings(recipe, name, find) for name in (variant, reference))
    seeds = sum(trial.variant == variant for trial in trials(recipe))
    own = [_held(recipe, made) for uri, made in mine.items() if uri not in other]
    return sum(workers for workers, _ in own) / seeds, sum(accelerators for _, accelerators in own) / seeds


def _held(recipe: Recipe, made: Artifact) -> tuple[float, float]:
    """Worker-seconds and accelerator-seconds of one finished training."""
    recorded = worker_seconds(made)
    workers_s = recipe.cluster.most_workers * made.seconds if recorded is None else recorded
    gpus: float = made.facts.get("cost", {}).get("gpus_per_worker", recipe.cluster.gpus_per_worker)
    return workers_s, workers_s * gpus


def _trainings(recipe: Recipe, variant: str, find: Callable[[str], Artifact]) -> dict[str, Artifact]:
    """Every training of a variant, by its manifest."""
    phases = [phase for phase in PHASES if phase_weights(recipe, variant, phase) is not None]
    made = [find(f"{phase}/{trial.name}") for trial in trials(recipe) if trial.variant == variant for phase in phases]
    return {found.manifest_uri: found for found in made}

"""One phase of training as a value: what is trained on which rows for how long, and where it writes."""

from dataclasses import dataclass

from medschool.artifact import Artifact
from medschool.procedure import Phase, training
from medschool.recipe import Recipe
from medschool.recipe.training import Training
from medschool.tokens.order import Order
from medschool.track import TrackedRun

JOURNAL = "metrics.jsonl"
"""Measurements of every step, in the finished artifact; saved with each training state, so that a resumed run has all of them."""


@dataclass(frozen=True)
class Course:
    """One phase of one trial, as the workers need it."""

    recipe: Recipe
    phase: Phase
    trial: str
    """Its name, for what users read; never for what is written."""
    model: Artifact
    order: Order
    steps: int
    run_uri: str
    """Where checkpoints of this run live, whatever attempt writes them."""
    prefix_uri: str
    """Where this attempt puts the finished model."""
    mlflow_run: TrackedRun | None
    report_every_steps: int | None = None
    """Steps between two reports to the trial that this training is part of, where it may be stopped early."""

    @property
    def spec(self) -> Training:
        return training(self.recipe, self.phase)

"""How far a job is, from the lines of its log: which stages and trials are done, running, to do, and how training goes.

    [ 9/17] pretrain/knowledge  run            jobs.run.Run.make_one
    study: 2 of 4 trials to run, 1 at once: knowledge, instructed                      jobs.study
    study: knowledge failed: ...                                                       jobs.study
          knowledge  step 12/24  loss 3.1021  lr 1.00e-03  1,234 tokens/s  40 s left   medschool.train.live

A log says what came so far. `plan_words` is what a submission puts into the job's metadata, so the stages to come have names.

The time that is left is that of the trainings: what the running ones say, and for those to come as long as one of the same kind
took. What is not known by then is not guessed. Corpus, tokens and scoring, and the wait for nodes, are not in it. Price: the
whole log is read each time.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from medschool.procedure import stages
from medschool.recipe import Recipe
from medschool.stage import TRIAL_KINDS
from medschool.train.live import Shown, read_line

STAGE = re.compile(r"^\[ *\d+/(?P<total>\d+)\] (?P<name>\S+) +(?P<word>run|cached|done in (?P<seconds>[\d.]+) s)\b")
STUDY = re.compile(r"^study: \d+ of \d+ trials to run, \d+ at once: (?P<names>.+)$")
FAILED = re.compile(r"^study: (?P<name>\S+) failed: ")
TRAININGS = ("pretrain", "instruct")


@dataclass(frozen=True)
class Progress:
    """Of one job. Stages in the order of the procedure, as far as it is known."""

    total: int
    """Stages of the recipe; 0 for a job that makes none."""
    done: tuple[str, ...]
    running: tuple[str, ...]
    to_do: tuple[str, ...]
    """Empty where nobody said which ones they are."""
    failed: tuple[str, ...]
    seconds: Mapping[str, float]
    """That a stage took, of those that this job made."""
    trials: Mapping[str, str]
    """Trial -> `done`, `running`, `waiting`, `failed`."""
    trainings: Mapping[str, Shown]
    """Stage -> its newest line, of those that run."""
    shared: frozenset[str] = field(default_factory=frozenset)
    """Stages that another one makes."""

    @property
    def tokens_per_s(self) -> float:
        return sum(shown.tokens_per_s for shown in self.trainings.values())

    @property
    def left_s(self) -> float | None:
        """Until the trainings are over, with as many at once as run now; None where it cannot be known yet."""
        mine = [stage for stage in self.running if _kind(stage) in TRAININGS]
        to_come = [stage for stage in self.to_do if _kind(stage) in TRAININGS and stage not in self.shared]
        known = len(self.done) + len(self.running) + len(self.to_do) + len(self.failed) == self.total
        left = [self._running_s(stage)[1] for stage in mine] + [self._kind_s(_kind(stage)) for stage in to_come]
        if not known or None in left:
            return None
        return sum(seconds for seconds in left if seconds is not None) / max(1, len(mine))

    def _running_s(self, stage: str) -> tuple[float | None, float | None]:
        """(whole, left) of a training that runs, at its speed now."""
        shown = self.trainings.get(stage)
        if shown is None:
            return None, None
        if shown.left_s is None:
            return None, 0.0 if shown.step == shown.steps else None
        return shown.left_s * shown.steps / (shown.steps - shown.step), shown.left_s

    def _kind_s(self, kind: str) -> float | None:
        """How long a training of this kind takes: the mean of those that are over, else of those that run."""
        over = [seconds for stage, seconds in self.seconds.items() if _kind(stage) == kind]
        known = over or [whole for stage in self.running if _kind(stage) == kind and (whole := self._running_s(stage)[0])]
        return sum(known) / len(known) if known else None


def plan_words(recipe: Recipe) -> str:
    """The stages of a recipe in one line, in order; `pretrain/b=pretrain/a` for a training that is made once for both."""
    words, first = [], dict[str, str]()
    for stage in stages(recipe):
        same = first.setdefault(repr((stage.kind, stage.sections, stage.inputs)), stage.name)
        words.append(stage.name if same == stage.name or stage.kind not in TRAININGS else f"{stage.name}={same}")
    return " ".join(words)


def progress(log: str, words: str = "") -> Progress:
    """What a job's log says so far. words: of `plan_words`; empty for a job that was submitted by other means."""
    said = dict(word.partition("=")[::2] for word in words.split())
    state, seconds, total, studied = dict[str, str](), dict[str, float](), 0, list[str]()
    newest: dict[str, Shown] = {}
    for line in log.splitlines():
        if found := STAGE.match(line):
            total, state[found["name"]] = int(found["total"]), found["word"].split()[0]
            if found["seconds"]:
                seconds[found["name"]] = float(found["seconds"])
        elif found := STUDY.match(line):
            studied = found["names"].split(", ")
        elif found := FAILED.match(line):
            state |= {name: "failed" for name, word in state.items() if word == "run" and _trial(name) == found["name"]}
        elif shown := read_line(line):
            newest[shown.who] = shown
    order = [*said, *(name for name in state if name not in said)] if total else []
    running = [name for name in order if state.get(name) == "run"]
    to_do = [name for name in said if name not in state] if total else []
    return Progress(
        total=total,
        done=tuple(name for name in order if state.get(name) in ("done", "cached")),
        running=tuple(running),
        to_do=tuple(to_do),
        failed=tuple(name for name in order if state.get(name) == "failed"),
        seconds=seconds,
        trials=_trials(order, state, studied),
        trainings={name: shown for name in running if _kind(name) in TRAININGS and (shown := newest.get(_trial(name)))},
        shared=frozenset(name for name, first in said.items() if first),
    )


def _trials(names: Sequence[str], state: Mapping[str, str], studied: Iterable[str]) -> dict[str, str]:
    """Trial -> its state."""
    theirs: dict[str, list[str]] = {name: [] for name in studied}
    for name in names:
        if _kind(name) in TRIAL_KINDS:
            theirs.setdefault(_trial(name), []).append(state.get(name, ""))
    return {trial: _state(state.get(f"evaluate/{trial}", ""), words) for trial, words in theirs.items()}


def _state(last: str, words: Sequence[str]) -> str:
    """Of a trial whose last stage and stages are in these states."""
    if last in ("done", "cached"):
        return "done"
    if "failed" in words:
        return "failed"
    return "running" if {"run", "done"} & set(words) else "waiting"


def _kind(stage: str) -> str:
    return stage.split("/")[0]


def _trial(stage: str) -> str:
    return stage.partition("/")[2]

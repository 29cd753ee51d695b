"""Every error a user can meet: what is wrong, where, and what to do about it.

    MedschoolError
    ├── RecipeError      the recipe cannot be read or contradicts itself
    ├── InputError       raw input is missing, damaged, or not what it says it is
    ├── StorageError     the object store refuses, is down, or holds something unexpected
    ├── ServiceError     a local service (store, Ray, MLflow, Serve) is not there or cannot start
    ├── PlanError        the cluster, the model and the recipe do not fit each other
    ├── StageError       a stage ran and its result is not acceptable
    └── StoppedError     somebody stopped it; what was done is kept

The command line prints two lines, `error: <where>: <problem>` and `fix: <remedy>`, and exits with `exit_code`.
"""

import re


class MedschoolError(Exception):
    """An error with a remedy.

    problem: one sentence, with the offending values in it.
    remedy: one sentence that says what the user can do now.
    where: file:line, key, row or URI that the problem sits at; may be empty.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str, where: str = "") -> None:
        super().__init__(problem, remedy, where)
        self.problem, self.remedy, self.where = problem, remedy, where

    def __str__(self) -> str:
        """One line: `<where>: <problem> (fix: <remedy>)`. `from_text` reads it back."""
        return " ".join(f"{self.where + ': ' if self.where else ''}{self.problem} (fix: {self.remedy})".split())


def from_text(text: str) -> "MedschoolError | None":
    """The last MedschoolError in a printed traceback, or None.

    Ray wraps what a remote task raises and keeps the original as text only.
    """
    found = re.findall(r"^medschool\.errors\.(\w+): (.*) \(fix: (.*)\)$", text, flags=re.MULTILINE)
    if not found:
        return None
    name, problem, remedy = found[-1]
    kind = {known.__name__: known for known in MedschoolError.__subclasses__()}.get(name, MedschoolError)
    return kind(problem, remedy)


def cause_of(error: BaseException) -> "MedschoolError | None":
    """The MedschoolError that an exception is, or that Ray wrapped into it, if there is one.

    Ray's wrapper is made a subclass of what it wraps, but holds nothing of it but the text.
    """
    plain = isinstance(error, MedschoolError) and type(error).__module__ == __name__
    return error if plain else from_text(str(error))  # type: ignore[return-value]


class RecipeError(MedschoolError):
    """The recipe cannot be read or contradicts itself."""

    exit_code = 2


class InputError(MedschoolError):
    """Raw input is missing, damaged, or not what it says it is."""


class StorageError(MedschoolError):
    """The object store refuses, is down, or holds something unexpected."""


class ServiceError(MedschoolError):
    """A service that the command needs is not there or cannot start."""


class PlanError(MedschoolError):
    """The cluster, the model and the recipe do not fit each other."""


class StageError(MedschoolError):
    """A stage ran and its result is not acceptable."""


class StoppedError(MedschoolError):
    """Somebody stopped it; what was done is kept. The exit code is the one of a process that ends with SIGTERM."""

    exit_code = 143

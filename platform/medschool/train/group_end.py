"""The way out for a worker group that agrees to end: not a failure, so Ray counts none and starts none again by itself."""

from medschool.errors import MedschoolError


class GroupEnds(Exception):
    """Raised on every rank at the same point of the run.

    error: what the run ends with; None where the driver starts a new group, which goes on from the newest state.
    """

    def __init__(self, reason: str, error: MedschoolError | None = None) -> None:
        super().__init__(reason, error)
        self.reason, self.error = reason, error

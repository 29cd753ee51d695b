"""A replica over an engine that fails on command; importable in Ray's workers."""

from typing import Any

from failing_engines import CommandedEngine

from medschool.serve import on_ray


class CommandedReplica(on_ray.Replica):
    def __init__(self, *deployed: Any) -> None:
        on_ray.EchoEngine = CommandedEngine  # type: ignore[misc]  # in this worker process
        super().__init__(*deployed)

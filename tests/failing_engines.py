"""Engines that fail on command, for tests of what serving does then; importable in Ray's workers."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from medschool.errors import ServiceError
from medschool.serve.engine import EchoEngine, Sampling, Step

HANG, DIE = "please hang", "please die"


class CommandedEngine(EchoEngine):
    """An echo whose loop stands still with every answer in it once a prompt says HANG, and has ended where it says DIE."""

    told = ""

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        asked = bytes(prompt).decode(errors="replace")
        async for step in super().generate(prompt, sampling):
            if self.told:
                await asyncio.Event().wait()
            yield step
            if asked in (HANG, DIE):
                self.told = asked

    def check(self) -> None:
        if self.told == DIE:
            raise ServiceError("the loop has ended", "see the log", "engine")

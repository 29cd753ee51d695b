"""A model in vLLM, behind the same interface: many answers at once, on GPUs, or on CPUs with vLLM's CPU build.

    gate, API, text --token ids--> VllmEngine --> AsyncLLM ==socket==> engine process: scheduler --> one worker a GPU
    the caller's loop                             a loop of its own

vLLM batches, keeps the keys and values of prompts that begin alike (prefix caching), and splits the model over the replica's GPUs
(tensor parallel), all on one node. Text stays here: vLLM gets token ids and gives token ids, so templates, stop strings and
control tokens are those of every other engine, and a client cannot tell the engines apart but by speed.

AsyncLLM belongs to one event loop for ever. It gets one in a thread of its own, so a probe before the first request and the API
may each call from theirs; the price is one wake-up of the caller's loop a step.

- Memory. On GPUs vLLM takes its own share of the card (0.9 and a bit) and keeps what it can. On CPUs the cache is sized for the
  worst case, as in `paged`, rounded up to whole GiB, because memory is shared there.
- Time. The start takes half a minute to two minutes: vLLM imports, starts a process, and on GPUs compiles and captures graphs.
- Schemas (`response_format`) are compiled by xgrammar in vLLM. White space between tokens of JSON is not allowed, since small
  models write it for ever; vLLM allows that rule with a named compiler only, so there is no second one for what xgrammar lacks.
- Seeds hold as far as logits do: the draw belongs to the request, but a batch of another size adds floats in another order.
  A seed draws other tokens than the same seed draws in `TransformersEngine`.
- Adapters: answers of several (on GPUs BATCH_ADAPTERS) and of the plain model are one batch. One is read when it is first
  asked for, which the probe does at the start.
- A replica's GPUs are those of one node.
- A replica that is killed takes vLLM along (`keeper`).

What is said of vLLM is said of one version (`vllm_install.PINNED`); its Python interface changes from release to release.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from medschool.errors import InputError, ServiceError
from medschool.serve.adapters import Pulled
from medschool.serve.engine import Engine, Likelihood, Sampling, Step
from medschool.serve.folder import check_folder
from medschool.serve.keeper import Keeper
from medschool.serve.vllm_fields import (
    Dtype,
    adapter_request,
    engine_fields,
    environment,
    likelihood,
    sampling_fields,
    scoring_fields,
    step_of,
    vllm_parameters,
)
from medschool.serve.watch import Load

STALL_S = 60.0
"""Without a step for so long while answers wait, the engine hangs. The longest on CPUs, 512 tokens of a 7B model, takes 30 s at
240 GFLOP/s."""
STOP_TIMEOUT_S = 10.0
LOOK_S = 1.0


class Pulse:
    """What vLLM tells of each of its steps; it takes the place of one of its statistics loggers.

    steps: since the start. running, waiting: answers in the batch and before it. cache_share: of its key-value cache in use.
    """

    def __init__(self) -> None:
        self.steps, self.running, self.waiting, self.cache_share = 0, 0, 0, 0.0
        self.heard_s = time.monotonic()

    def logger(self, vllm_config: Any, engine_index: int = 0) -> "Pulse":
        """vLLM's StatLoggerFactory."""
        return self

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        self.steps += 1
        self.heard_s = time.monotonic()
        if scheduler_stats is not None:
            self.running, self.waiting = scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs
            self.cache_share = float(scheduler_stats.kv_cache_usage)

    def log(self) -> None:
        return

    def log_engine_initialized(self) -> None:
        return


class VllmEngine(Engine):
    """Answers by vLLM. `start` makes one from a folder of weights.

    make: gives vLLM's AsyncLLM; called once, in its loop. parameters: makes vLLM's SamplingParams of `sampling_fields`.
    adapters: vLLM's LoRARequest of each, by name.
    """

    honours = frozenset({"logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "response_format"})

    def __init__(
        self,
        make: Callable[[], Any],
        end_ids: Sequence[int],
        parameters: Callable[[dict[str, Any]], Any],
        pulse: Pulse | None = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self._end_ids, self._parameters, self._pulse = tuple(end_ids), parameters, pulse or Pulse()
        self._adapters = adapters or {}
        self._waiting, self._stopped = 0, False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        self._keeper = Keeper()
        try:
            self._llm = self._made(make)
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._keeper.stop()
            raise

    def _made(self, make: Callable[[], Any]) -> Any:
        """What `make` gives in the loop; its processes are known to the keeper from their first second on."""

        async def made() -> Any:
            return make()

        loading = asyncio.run_coroutine_threadsafe(made(), self._loop)
        while True:
            done, _ = concurrent.futures.wait([loading], LOOK_S)
            self._keeper.learn()
            if done:
                return loading.result()

    @classmethod
    def start(
        cls,
        folder: Path,
        end_ids: Sequence[int],
        context_tokens: int,
        places: int,
        dtype: Dtype = "bf16",
        gpus: int = 0,
        threads: int = 1,
        adapters: Sequence[Pulled] = (),
    ) -> "VllmEngine":
        """Load the model in a local folder. gpus: split it over so many, 0 computes on CPUs with `threads` threads.

        end_ids: tokens that end an answer, besides those in the model's generation_config.json.

        Raises InputError or PlanError for a folder that must not be served, ServiceError when vLLM is missing or fails to start.
        """
        config = check_folder(folder, context_tokens)
        for name, value in environment(config, context_tokens, places, dtype, gpus, threads).items():
            os.environ.setdefault(name, value)  # before vLLM is imported, which reads them then; yours come first
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except Exception as error:  # a broken library beside it raises whatever it likes
            remedy = "install it with `make vllm` and name its Python as serve.python; `medschool doctor` says what is there"
            raise ServiceError(f"vLLM can not be imported ({type(error).__name__}: {error})", remedy, "serve.engine") from error
        fields, pulse = engine_fields(folder, context_tokens, places, dtype, gpus, adapters), Pulse()
        requests = {one.name: adapter_request(one.name, number, one.folder) for number, one in enumerate(adapters, start=1)}

        def make() -> Any:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**fields), stat_loggers=[pulse.logger])

        try:
            return cls(make, end_ids, vllm_parameters, pulse, requests)
        except Exception as error:
            remedy = "the replica's log has vLLM's own words above this"
            raise ServiceError(f"vLLM did not start ({type(error).__name__}: {error})", remedy, "serve.engine") from error

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        """Steps of one answer; closing it ends the request in vLLM. Raises ServiceError when vLLM fails."""
        async with aclosing(self._outputs(prompt, sampling_fields(sampling, self._end_ids), sampling.adapter)) as outputs:
            async for output in outputs:
                step = step_of(output, sampling.top_logprobs)
                yield step
                if step.finish:
                    return

    async def score(self, tokens: Sequence[int], top: int, adapter: str = "") -> list[Likelihood | None]:
        async with aclosing(self._outputs(tokens, scoring_fields(top), adapter)) as outputs:
            found = [output async for output in outputs][-1].prompt_logprobs
        return [None, *(likelihood(entries, token, top) for entries, token in zip(found[1:], tokens[1:], strict=True))]

    async def _outputs(self, prompt: Sequence[int], fields: dict[str, Any], adapter: str) -> AsyncGenerator[Any]:
        """vLLM's outputs for a prompt, brought from its loop to the caller's."""
        self.check()
        lora = {"lora_request": self._adapters[adapter]} if adapter else {}
        if not self._waiting:
            self._pulse.heard_s = time.monotonic()
        self._waiting += 1
        here, brought = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def bring(one: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop has ended
                here.call_soon_threadsafe(brought.put_nowait, one)

        running = asyncio.run_coroutine_threadsafe(self._pump(list(prompt), fields, lora, bring), self._loop)
        try:
            while (one := await brought.get()) is not None:
                if isinstance(one, Exception):  # not its text, which may hold the prompt
                    raise ServiceError(f"the model failed: {type(one).__name__}", "see the replica's log", "engine") from one
                self._pulse.heard_s = time.monotonic()
                yield one
        finally:
            self._waiting -= 1
            running.cancel()

    async def _pump(self, prompt: list[int], fields: dict[str, Any], lora: dict[str, Any], bring: Callable[[Any], None]) -> None:
        """In vLLM's loop: all outputs, then None or the error that ended them. Cancelled, it ends the request in vLLM."""
        try:
            rendered = {"type": "token", "prompt_token_ids": prompt}  # vLLM's TokensInput: nothing is left to tokenize
            request = self._llm.generate(rendered, self._parameters(fields), uuid.uuid4().hex, **lora)
            async with aclosing(request) as outputs:
                async for output in outputs:
                    bring(output)
            bring(None)
        except Exception as error:
            bring(error)

    def check_schema(self, schema: str) -> None:
        """Raises InputError for a schema that vLLM's grammar compiler can not follow."""
        config = self._llm.vllm_config
        asked = self._parameters(sampling_fields(Sampling(1, schema=schema), ()))
        try:
            asked.verify(config.model_config, None, config.structured_outputs_config, self._llm.get_tokenizer())
        except Exception as error:  # vLLM's and its compiler's own have no other base in common
            remedy = "leave out what JSON schema has beyond types, properties, items, enums and ranges"
            raise InputError("this JSON schema can not be followed", remedy, "response_format") from error

    @property
    def turns(self) -> int:
        """Steps of vLLM's scheduler since it began."""
        return self._pulse.steps

    def load(self) -> Load:
        """What vLLM told at its last step."""
        return Load(self._pulse.running, self._pulse.waiting, self._pulse.cache_share)

    def check(self) -> None:
        """Raises ServiceError when vLLM's process has ended, or makes no step for STALL_S while answers wait."""
        if self._stopped or self._llm.errored:
            raise ServiceError("vLLM's process has ended", "the replica is replaced; see its log for the cause", "engine")
        silent_s = time.monotonic() - self._pulse.heard_s if self._waiting else 0.0
        if silent_s > STALL_S:
            problem = f"{self._waiting} answers wait, and vLLM made no step for {silent_s:.0f} s"
            raise ServiceError(problem, "the replica is replaced; see its log for the cause", "engine")

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True

        async def ended() -> None:
            self._llm.shutdown()
            self._loop.call_soon(self._loop.stop)

        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(ended(), self._loop).result(STOP_TIMEOUT_S)
            self._keeper.stop()  # if vLLM did not stop in time, it is ended with this process

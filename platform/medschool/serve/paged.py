"""A LLaMA-style model on CPU with continuous batching: requests join and leave the running batch at every token.

transformers runs the loop in a thread of its own: each turn takes one token of every running answer, and up to MAX_BATCH_TOKENS
tokens in all, so a long prompt is read in pieces and does not hold the others up. Keys and values live in pages of PAGE_TOKENS
tokens. The cache is sized for the worst case, every place taken by an answer as long as the context, so none is evicted:

    bytes = places * context * layers * 2 * kv_heads * head_dim * bytes per value        135M model, 8 x 2048, bf16: 377 MB

Left to itself the library sizes the cache from free memory, and takes most of it.

Sampling is ours (`Sampler`): transformers draws a whole batch from one generator, so a seed would mean nothing to a single
request, and its top-p sorts the vocabulary even for greedy requests. Gumbel-max gives each request its own stream: with noise g
of the standard Gumbel distribution, argmax(logits / temperature + g) is a draw from softmax(logits / temperature).

Log-probabilities of what is written are taken where the token is drawn; those of a given text come from one plain forward over
it, one text at a time, beside the running batch, by modules of their own over the same weights. Its price: T x V x 4 bytes for
the logits, 200 MB for 1,024 tokens of a vocabulary of 49,152.

Shapes: B rows with a new token, V vocabulary, T tokens of a text.
"""

import asyncio
import copy
import hashlib
import secrets
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

from medschool.errors import ServiceError
from medschool.serve.engine import Engine, Finish, Likelihood, Sampling, Step
from medschool.serve.folder import check_folder
from medschool.serve.watch import Load
from medschool.train.model import load_model

PAGE_TOKENS = 32
MAX_BATCH_TOKENS = 256
STOP_TIMEOUT_S = 10.0

Dtype = Literal["bf16", "fp32"]


class TransformersEngine(Engine):
    """Serves the model in a local folder (config.json, *.safetensors). See the module's docstring for its memory.

    end_ids: tokens that end an answer, besides those in the model's generation_config.json.
    """

    honours = frozenset({"logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty"})

    def __init__(self, folder: Path, end_ids: Sequence[int], context_tokens: int, places: int, dtype: Dtype = "bf16") -> None:
        model = _load_model(folder, context_tokens, dtype)
        self._scorer = _twin(model)
        self._scoring = ThreadPoolExecutor(1, "score")
        known = model.generation_config.eos_token_id
        self._end_ids = sorted({*end_ids, *([known] if isinstance(known, int) else known or [])})
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=self._end_ids),
            continuous_batching_config=_batching(context_tokens, places),
        )
        self._manager.logit_processor = _sampling_only()
        self._manager.start()

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        """Steps of one answer. Raises ServiceError when the model fails or the engine has stopped."""
        self.check()
        self._must_know((*prompt, *sampling.logit_bias))
        request_id = uuid.uuid4().hex
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._manager.register_result_handler(request_id, outputs.put_nowait)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        trace: list[Likelihood] = []
        faults: list[Exception] = []
        done, seen = False, 0
        try:
            self._manager.add_request(
                list(prompt), request_id, sampling.max_tokens, streaming=True, sampling=replace(sampling, seed=seed), trace=trace,
                faults=faults,
            )  # fmt: skip
            while not done:
                output = await outputs.get()
                if fault := output.error or next(iter(faults), None):
                    raise ServiceError(f"the model failed: {fault}", "see the replica's log", "engine")
                done, fresh = output.is_finished(), tuple(output.generated_tokens[seen:])
                likely = tuple(trace[seen : seen + len(fresh)])
                seen += len(fresh)
                yield Step(fresh, self._finish(fresh) if done else None, likely)
        finally:
            if not done:
                self._manager.cancel_request(request_id)
                self._manager.output_router.result_handlers.pop(request_id, None)

    def _finish(self, tokens: tuple[int, ...]) -> Finish:
        return "stop" if tokens and tokens[-1] in self._end_ids else "length"

    def _must_know(self, tokens: Iterable[int]) -> None:
        """Raises ServiceError for a token that the model lacks (tokenizers may have more): with it the whole batch would fail."""
        known = self._scorer.get_input_embeddings().num_embeddings
        if (highest := max(tokens, default=0)) >= known:
            problem = f"token {highest} is none of the model's {known}, though the tokenizer has it"
            raise ServiceError(problem, "serve the tokenizer that the model was trained with", "engine")

    async def score(self, tokens: Sequence[int], top: int, adapter: str = "") -> list[Likelihood | None]:
        self.check()
        self._must_know(tokens)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._scoring, self._scored, list(tokens), top)
        except RuntimeError as error:
            raise ServiceError(f"the model failed: {error}", "see the replica's log", "engine") from error

    def _scored(self, tokens: list[int], top: int) -> list[Likelihood | None]:
        with torch.inference_mode():
            logits_TV = self._scorer(torch.tensor([tokens], device=self._scorer.device), use_cache=False).logits[0, :-1]
        following = zip(logits_TV, tokens[1:], strict=True)
        return [None, *(likelihood(logits_V.float().log_softmax(-1), token, top) for logits_V, token in following)]

    def check(self) -> None:
        if not self._manager.is_running():
            raise ServiceError("the generation loop has ended", "the replica is replaced; see its log for the cause", "engine")

    @property
    def turns(self) -> int:
        """Passes of a batch through the model since it began."""
        return int(getattr(self._manager, "current_batch", 0))

    def load(self) -> Load:
        """What the loop has to do now; nothing before its first turn."""
        processor = getattr(self._manager, "batch_processor", None)
        if processor is None:
            return Load()
        scheduler = processor.scheduler
        running = list(scheduler.active_requests.values())
        pages = sum(-(-(len(state.initial_tokens) + state.generated_len()) // PAGE_TOKENS) for state in running)
        return Load(len(running), len(scheduler.waiting_requests), pages / processor.cache.num_blocks)

    def stop(self) -> None:
        self._scoring.shutdown(wait=False, cancel_futures=True)
        if self._manager.is_running():
            self._manager.stop(block=True, timeout=STOP_TIMEOUT_S, hard_stop=True)


class Sampler(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]  # transformers is not checked
    """Makes of each request's row one whose argmax, which follows, is the draw; writes log-probabilities into its `trace`.

    Rows are remembered between `prepare_tensor_args` and the call, which the synchronous loop makes in turn from one thread; the
    int32 tensor that the library offers for arguments can not hold a 64-bit seed.
    """

    def __init__(self) -> None:
        self.supported_kwargs: dict[str, type] = {"sampling": Sampling, "trace": list, "faults": list}
        self.ignored_kwargs: tuple[str, ...] = ()
        self._states: list[Any] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        self._states = [request.state for request in requests_with_new_token]
        return torch.zeros(len(self._states), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """scores_BV float32, changed in place for the rows that do not simply take the most likely token."""
        for scores_V, state in zip(scores, self._states, strict=False):
            try:
                self._draw(scores_V, state)
            except Exception as error:  # here it would end the loop and with it every answer; so it ends this one
                state.logit_processor_kwargs["faults"].append(error)
        return scores

    def _draw(self, scores_V: torch.Tensor, state: Any) -> None:
        sampling: Sampling = state.logit_processor_kwargs["sampling"]
        logprobs_V = None if sampling.top_logprobs is None else scores_V.float().log_softmax(-1)
        adjust(scores_V, sampling, state.generated_tokens)
        if sampling.temperature > 0:
            scores_V.copy_(noisy(scores_V, sampling, len(state.initial_tokens) + state.generated_len()))
        if logprobs_V is not None:
            drawn = int(scores_V.argmax())
            state.logit_processor_kwargs["trace"].append(likelihood(logprobs_V, drawn, sampling.top_logprobs or 0))


def adjust(logits_V: torch.Tensor, sampling: Sampling, answer: Sequence[int]) -> None:
    """Bias and penalties, in place. answer: tokens written so far.

    Source: OpenAI's API reference, `logit_bias`, and its guide's "Frequency and presence penalties":
    mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence.
    """
    for token, bias in sampling.logit_bias.items():
        logits_V[token] += bias
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in Counter(answer).items():
            logits_V[token] -= count * sampling.frequency_penalty + sampling.presence_penalty


def likelihood(logprobs_V: torch.Tensor, token: int, top: int) -> Likelihood:
    """One token's log-probability, and the `top` likeliest."""
    best = logprobs_V.topk(top) if top else None
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return Likelihood(float(logprobs_V[token]), tuple(likeliest))


def noisy(logits_V: torch.Tensor, sampling: Sampling, position: int) -> torch.Tensor:
    """Logits whose argmax is one draw by `sampling` (temperature above 0), a pure function of (logits, seed, position)."""
    scaled_V = logits_V / sampling.temperature
    if sampling.top_p < 1:
        sorted_V, order_V = scaled_V.sort(descending=True)
        before_V = sorted_V.softmax(-1).cumsum(-1).roll(1)
        before_V[0] = 0.0  # the most likely token always stays
        scaled_V[order_V[before_V >= sampling.top_p]] = -torch.inf
    digest = hashlib.blake2b(f"{sampling.seed}:{position}".encode(), digest_size=8).digest()
    generator = torch.Generator(logits_V.device).manual_seed(int.from_bytes(digest, signed=True, byteorder="little"))
    return scaled_V - torch.empty_like(scaled_V).exponential_(generator=generator).log()


def _sampling_only() -> ContinuousBatchingLogitsProcessorList:
    """The loop's list of processors with the Sampler alone, and the one argument row that it takes."""
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([Sampler()]))
    processors.tensors_required = 1
    return processors


def _batching(context_tokens: int, places: int) -> ContinuousBatchingConfig:
    pages_each = -(-context_tokens // PAGE_TOKENS)
    return ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=places * pages_each,
        max_batch_tokens=max(MAX_BATCH_TOKENS, places),
        max_requests_per_batch=places,
        use_async_batching=False,
        use_cuda_graph=False,
        per_request_processors=True,
    )


def _twin(model: Any) -> Any:
    """The same weights, not copied, in modules of their own: continuous batching changes the attention of those it is given."""
    return copy.deepcopy(model, {id(shared): shared for shared in (*model.parameters(), *model.buffers())})


def _load_model(folder: Path, context_tokens: int, dtype: Dtype) -> Any:
    """The model in eval mode. Raises what `check_folder` raises."""
    check_folder(folder, context_tokens)
    return load_model(folder, dtype).eval()

"""Leave out one update that DeepSpeed is about to make, with weights and optimizer state unchanged to the bit.

    backward, all micro-batches --> gradient norm, reduced over all ranks --refuse?--> update | nothing

DeepSpeed itself leaves an update out when the norm of the gradient is not finite: it drops the gradients, touches neither weights
nor optimizer, and does not step the schedule (deepspeed/runtime/engine.py, _take_model_step; the `overflow` of every optimizer).
So a veto needs no copy of anything: where DeepSpeed reads the norm, it is asked, and a refused update reads infinity. Each kind
of optimizer reads it in another place:

    ZeRO 1, 2       optimizer.scaled_global_norm()
    ZeRO 3          optimizer._get_norm_groups()
    ZeRO 0, bf16    optimizer.overflow_checker.check()
    ZeRO 0, fp32    a plain optimizer, which leaves a parameter without gradient alone; the engine clips before

The price is one broadcast of two numbers a step, so that every rank judges the same ones whatever its own sums rounded to.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from medschool.errors import PlanError
from medschool.train.guard import Measured


def step_unless(engine: Any, loss: torch.Tensor, refuse: Callable[[Measured], bool]) -> Measured:
    """The last engine.step() of a batch, without its update where `refuse` says so; what was measured, the same on every rank.

    loss: that of the global batch, a float64 of no dimension on the engine's device, so that it is waited for with the norm.
    `engine.was_step_applied()` tells whether the update was made. A gradient that is not finite is never applied, whatever
    `refuse` says, and its norm is infinity. Raises PlanError for an optimizer of an unknown kind.
    """
    measured: Measured | None = None

    def refused(norm: Any) -> bool:
        nonlocal measured
        numbers = torch.stack([loss, torch.as_tensor(norm, dtype=torch.float64, device=loss.device)])
        dist.broadcast(numbers, 0)
        first, second = numbers.tolist()
        measured = Measured(first, second if second >= 0 else float("inf"))
        return not measured.finite or refuse(measured)

    with _asked(engine, refused):
        engine.step()
    return measured or Measured(float(loss), float("inf"))


@contextmanager
def _asked(engine: Any, refused: Callable[[Any], bool]) -> Iterator[None]:
    """Have `refused(norm)` asked in the next step."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "scaled_global_norm"):
        with _replaced(optimizer, "scaled_global_norm", lambda read: _infinite(read(), refused)):
            yield
    elif hasattr(optimizer, "_get_norm_groups"):
        with _replaced(optimizer, "_get_norm_groups", lambda read: _infinite_groups(read(), refused)):
            yield
    elif hasattr(optimizer, "overflow_checker"):
        with _replaced(optimizer.overflow_checker, "check", lambda read: read() or refused(_norm(engine))):
            yield
    elif isinstance(optimizer, torch.optim.Optimizer):
        with _replaced(engine, "clip_fp32_gradients", lambda clip: _clip_or_drop(engine, clip, refused)):
            yield
        del optimizer.overflow
    else:
        raise PlanError(
            f"the guard does not know where {type(optimizer).__name__} reads the norm of the gradient",
            "use another cluster.zero_stage",
            "cluster.zero_stage",
        )


@contextmanager
def _replaced(owner: Any, name: str, call: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """`owner.name()` is `call(the method itself)` for a while."""
    method = getattr(owner, name)
    setattr(owner, name, lambda: call(method))
    try:
        yield
    finally:
        delattr(owner, name)


def _infinite(norm: torch.Tensor, refused: Callable[[Any], bool]) -> torch.Tensor:
    return torch.full_like(norm, float("inf")) if refused(norm) else norm


def _infinite_groups(norms: list[torch.Tensor], refused: Callable[[Any], bool]) -> list[torch.Tensor]:
    from deepspeed.runtime.utils import combine_grad_norm_groups

    return [torch.full_like(norm, float("inf")) for norm in norms] if refused(combine_grad_norm_groups(norms)) else norms


def _norm(engine: Any) -> torch.Tensor:
    """Norm of the gradients of the module, which every rank holds whole, already averaged (ZeRO 0)."""
    grads = (parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None)
    return torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]).norm()


def _clip_or_drop(engine: Any, clip: Callable[[], None], refused: Callable[[Any], bool]) -> None:
    """Clip; or drop all gradients, so that a plain optimizer has nothing to do. `overflow` keeps the engine's schedule still."""
    engine.optimizer.overflow = refused(_norm(engine))
    if engine.optimizer.overflow:
        engine.zero_grad()
    else:
        clip()

"""The states of all random number generators of one worker, as JSON: torch (CPU and its GPU), numpy, Python.

Dropout draws from them. A resumed worker draws what the uninterrupted one would have drawn, as long as it has the same rank in a
group of the same size. A worker of a rank that no state was saved for keeps the generators it started with.

JSON and not a pickle: nothing that is read here can run code. 12 kB a worker.
"""

import base64
import json
import random
from typing import Any

import numpy as np
import torch


def capture() -> bytes:
    """All states of this process, on its current GPU where it has one."""
    python, state = random.getstate(), np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    values: dict[str, Any] = {
        "torch": _text(torch.get_rng_state()),
        "cuda": _text(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
        "numpy": state | {"state": {"key": state["state"]["key"].tolist(), "pos": state["state"]["pos"]}},
        "python": [python[0], list(python[1]), python[2]],
    }
    return json.dumps(values).encode()


def restore(data: bytes) -> None:
    """Set what `capture` has taken. A GPU's state is left as it is where one side has no GPU."""
    values = json.loads(data)
    torch.set_rng_state(_tensor(values["torch"]))
    if values["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(values["cuda"]))
    inner = values["numpy"]["state"]
    np.random.set_state(values["numpy"] | {"state": {"key": np.array(inner["key"], np.uint32), "pos": inner["pos"]}})
    version, internal, gauss = values["python"]
    random.setstate((version, tuple(internal), gauss))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

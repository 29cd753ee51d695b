"""Learning rate over the steps: linear warm-up that starts above zero, then a half cosine down to a floor.

The first step of a warm-up over n steps runs at peak/n. (DeepSpeed's own WarmupCosineLR gives the first two steps a rate of
zero.)
"""

import math


def lr_factor(step: int, steps: int, warmup_fraction: float, final_lr_fraction: float) -> float:
    """Share of the peak rate at optimizer step `step` (0-based) of `steps`."""
    warmup = math.ceil(warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return final_lr_fraction + (1 - final_lr_fraction) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

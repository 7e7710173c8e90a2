"""What is said of a training whose loss became no number: what stopped, what was kept, and what may help."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def told(value: float, step: int, steps: int, kept: str, before: Mapping[str, Tensor]) -> str:
    """Return the sentences for a loss of NaN or infinity.

    Args:
        value: The loss.
        step, steps: Where it came, and how many steps were planned.
        kept: What the training ends with.
        before: The weights that the first step began with.
    """
    called = "NaN" if math.isnan(value) else "infinite"
    where = f"The loss became {called} at step {step} of {steps}; training stopped and kept {kept}."
    if step > 1:
        return f"{where} A lower learning rate, warm-up or gradient clipping may help."
    broken = next((n for n, t in before.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())), None)
    if broken is not None:
        return f"{where} The weight '{broken}' of the model holds NaN or infinity: take a file that is whole."
    return f"{where} No weight had changed by then: look at the inputs, the targets and the loss function."

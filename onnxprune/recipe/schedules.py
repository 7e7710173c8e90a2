"""How much is pruned at each step: a registry of functions `(step, steps, initial, final) -> sparsity`.

Steps count from 1 to `steps`; every schedule gives `final` at the last step, and never falls from one step to the next.
Sparsities are shares between 0 and 1 of the prunable parameters.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.errors import RecipeError
from onnxprune.plugins import Plugins, Registry, judged, no_number

Schedule = Callable[[int, int, float, float], float]

SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    Plugins("onnxprune.schedules"),
    flag="--schedule",
    of_function=lambda name, function: judged(function, name, no_number),
)


@SCHEDULES.register("one-shot")
def one_shot(step: int, steps: int, initial: float, final: float) -> float:
    """Everything at the first step; later steps only retrain."""
    return final


@SCHEDULES.register("linear")
def linear(step: int, steps: int, initial: float, final: float) -> float:
    """The same number of weights at each step: s_t = s_i + (s_f - s_i) t / n."""
    return initial + (final - initial) * step / steps


@SCHEDULES.register("exponential")
def exponential(step: int, steps: int, initial: float, final: float) -> float:
    """A fixed share of what is left at each step: 1 - s_t = (1 - s_i) ((1 - s_f) / (1 - s_i))^(t/n).

    Source: Frankle and Carbin 2019 (The Lottery Ticket Hypothesis), section 2: p^(1/n) of the survivors per round.
    To remove everything takes infinitely many such steps, so `final` has to be below 1.
    """
    if step == steps:
        return final
    if final >= 1 or initial >= 1:
        raise RecipeError("The exponential schedule needs an initial and a final sparsity below 1.")
    return 1 - (1 - initial) * ((1 - final) / (1 - initial)) ** (step / steps)


@SCHEDULES.register("cubic")
def cubic(step: int, steps: int, initial: float, final: float) -> float:
    """Fast first, then ever slower: s_t = s_f + (s_i - s_f) (1 - t/n)^3.

    Source: Zhu and Gupta 2017 (To prune, or not to prune), equation 1.
    """
    return final + (initial - final) * (1 - step / steps) ** 3


def sparsities(name: str, steps: int, final: float, initial: float = 0.0) -> list[float]:
    """The sparsity after each of `steps` steps, in order.

    Raises:
        RecipeError: `steps` is below 1, a sparsity lies outside [0, 1], or falls from one step to the next.
    """
    if steps < 1:
        raise RecipeError(f"A schedule needs at least one step, not {steps}.")
    schedule = SCHEDULES.find(name)
    values = [float(schedule(step, steps, initial, final)) for step in range(1, steps + 1)]
    for before, after in zip([initial, *values], values, strict=False):
        if not 0 <= after <= 1:
            raise RecipeError(f"The schedule '{name}' gives a sparsity of {after:g}, which is not between 0 and 1.")
        if after < before - 1e-9:
            raise RecipeError(f"The schedule '{name}' falls from {before:g} to {after:g}: pruned weights stay pruned.")
    return values

"""Schedules say how much is pruned after each step."""

from __future__ import annotations

import pytest

from onnxprune.errors import RecipeError
from onnxprune.recipe.schedules import SCHEDULES, sparsities


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("initial", [0.0, 0.3])
def test_every_schedule_rises_and_ends_at_the_final_sparsity(name: str, steps: int, initial: float) -> None:
    values = sparsities(name, steps, 0.9, initial)
    assert len(values) == steps
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.9)
    assert values[0] >= initial


def test_one_shot_prunes_everything_at_once() -> None:
    assert sparsities("one-shot", 3, 0.8) == [0.8, 0.8, 0.8]


def test_linear_prunes_the_same_number_at_each_step() -> None:
    assert sparsities("linear", 4, 0.8) == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_exponential_keeps_the_same_share_of_the_survivors_at_each_step() -> None:
    left = [1 - value for value in sparsities("exponential", 3, 0.875)]
    assert left == pytest.approx([0.5, 0.25, 0.125])


def test_cubic_follows_zhu_and_gupta() -> None:
    assert sparsities("cubic", 2, 0.8, 0.2)[0] == pytest.approx(0.8 + (0.2 - 0.8) * (1 - 1 / 2) ** 3)


def test_exponential_cannot_remove_everything_in_several_steps() -> None:
    with pytest.raises(RecipeError, match="below 1"):
        sparsities("exponential", 2, 1.0)


def a_schedule_of_the_user(step: int, steps: int, initial: float, final: float) -> float:
    return final * step**2 / steps**2


def a_falling_schedule(step: int, steps: int, initial: float, final: float) -> float:
    return final / step


def test_a_users_function_is_a_schedule() -> None:
    assert sparsities(f"{__name__}:a_schedule_of_the_user", 2, 0.8) == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize(
    ("name", "steps", "final", "message"),
    [
        ("cubism", 2, 0.5, "there is no schedule 'cubism'"),
        ("linear", 0, 0.5, "at least one step"),
        ("linear", 2, 1.5, "not between 0 and 1"),
        (f"{__name__}:a_falling_schedule", 2, 0.5, "falls from"),
        (f"{__name__}:no_such_schedule", 2, 0.5, "has no function 'no_such_schedule'"),
        ("no_such_module:schedule", 2, 0.5, "cannot be imported"),
    ],
)
def test_a_wrong_schedule_is_refused(name: str, steps: int, final: float, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sparsities(name, steps, final)

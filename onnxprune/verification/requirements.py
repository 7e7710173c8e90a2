"""Requirements checked on measured figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnxprune.errors import VerificationError
from onnxprune.recipe.requirements import Limit


def check_requirements(limits: Iterable[Limit], measured: Mapping[str, float]) -> None:
    """Check limits.

    Raises:
        VerificationError: One is missed, or its figure could not be measured; the sentence names each.
    """
    missed = missed_limits(limits, measured)
    if missed:
        raise VerificationError(f"no model was written, because {' and '.join(missed)}")


def missed_limits(limits: Iterable[Limit], measured: Mapping[str, float]) -> list[str]:
    """Say of each limit that is missed, or whose figure could not be measured, what was found and what was wanted."""
    missed = []
    for limit in limits:
        wanted = f"(wanted {limit.comparison} {limit.bound:g})"
        if limit.name not in measured:
            missed.append(f"{limit.name} could not be measured {wanted}")
        elif not limit.holds(measured[limit.name]):
            missed.append(f"{limit.name} is {measured[limit.name]:.4g} {wanted}")
    return missed

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
    missed = []
    for limit in limits:
        if limit.name not in measured:
            missed.append(f"{limit.name} could not be measured (wanted {limit.comparison} {limit.bound:g})")
        elif not limit.holds(measured[limit.name]):
            value = measured[limit.name]
            missed.append(f"{limit.name} is {value:.4g} (wanted {limit.comparison} {limit.bound:g})")
    if missed:
        raise VerificationError(f"nothing was written, because {' and '.join(missed)}")

"""Settings that contradict each other, refused when the recipe is made, before any work is done.

Each check raises a ValueError whose sentence names the flag. A recipe is held against the data of a run in
pipeline/preflight.py.
"""

from __future__ import annotations

from onnxprune.recipe.fields import AMOUNTS, TARGETS, Fields
from onnxprune.recipe.flag import flag_name, flag_of
from onnxprune.recipe.granularity import DEFAULT_UNIT_SHARE, WEIGHTS

_SAME = 1e-9
_RANKED = ("auto", "global")


def check(fields: Fields) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ValueError: The sentence names the flag.
    """
    _check_amount(fields)
    _check_structure(fields)
    _check_storage(fields)
    _check_engine(fields)
    _check_training(fields)


def _flag(setting: str) -> str:
    return flag_name(Fields, setting)


# -- how much goes


def _check_amount(fields: Fields) -> None:
    """Refuse a recipe that says not or twice how much goes, or has a target that it cannot move."""
    amounts = [name for name in AMOUNTS if name != "sparsity" and getattr(fields, name) is not None]
    if "sparsity" in fields.model_fields_set and (fields.sparsity > 0 or not amounts):
        amounts.insert(0, "sparsity")
    if not amounts:
        others = ", ".join(map(_flag, TARGETS))
        raise ValueError(f"--sparsity: say which share of the weights goes, between 0 and 1 (or give one of {others})")
    if len(amounts) > 1:
        raise ValueError(f"{_flag(amounts[1])}: {_flag(amounts[0])} says already how much goes: give one of them")
    if amounts[0] in TARGETS:
        _check_target(fields, amounts[0])


def _check_target(fields: Fields, target: str) -> None:
    parts, flag = fields.parts, _flag(target)
    if parts.sets is not None and not parts.removes:
        raise ValueError(f"{flag}: --structure {parts.text} sets how much goes, there is nothing to look for")
    smaller = parts.removes or parts.rewritten
    if target in ("target_latency", "target_macs") and not smaller:
        raise ValueError(f"{flag}: zeros change neither multiply-adds nor latency: take --structure channels")
    stored = fields.pack != "no" or fields.sparse_initializers
    if target == "target_size" and not smaller and not stored:
        raise ValueError(f"{flag}: zeros alone make no file smaller: add --pack, or take --structure channels")


# -- what goes


def _check_structure(fields: Fields) -> None:
    parts = fields.parts
    if fields.quality is not None:
        _check_threshold(fields)
    elif fields.target is None and fields.initial_sparsity > fields.sparsity:
        raise ValueError("--initial-sparsity is more than --sparsity")
    if parts.sets is not None:
        _check_pattern(fields, parts.sets)
    if fields.unit_share != DEFAULT_UNIT_SHARE and (not parts.mixed or parts.sets is not None or parts.joint):
        raise ValueError("--unit-share: only with --structure channels+weights or channels+block:RxC")
    if parts.joint and fields.allocation != "auto":
        raise ValueError("--allocation: --structure joint divides by what is lost for what is saved: leave it out")
    if not parts.units and (fields.kinds or fields.allow_inexact):
        flag = "kinds" if fields.kinds else "allow-inexact"
        raise ValueError(f"--{flag}: about whole units, which --structure {parts.text} does not remove")
    if fields.interface == "narrow" and not parts.removes:
        raise ValueError(f"--resize-io: about heads and layers, which --structure {parts.text} does not remove")
    if fields.interface == "narrow" and fields.pack != "no" and fields.pack_values != "fp32":
        raise ValueError("--resize-io: with --pack-values fp32 only")
    if not parts.shape.ranks and fields.allocation not in _RANKED:
        raise ValueError(f"--allocation: --structure {parts.text} divides nothing among layers: leave it out")


def _check_threshold(fields: Fields) -> None:
    if fields.structure != WEIGHTS:
        raise ValueError(f"--quality: a threshold is for single weights, --structure {fields.structure} is not")
    for setting, default in (("criterion", "auto"), ("allocation", "auto")):
        if getattr(fields, setting) != default:
            raise ValueError(f"--{setting}: --quality is a threshold on the magnitudes of each layer: leave it out")


def _check_pattern(fields: Fields, share: float) -> None:
    """Refuse what does not go with a pattern that sets the share of weights it zeroes."""
    text, units = fields.structure, fields.parts.units
    if not units and abs(fields.sparsity - share) > _SAME:
        raise ValueError(f"--sparsity: {text} makes it {share:g}: leave it out")
    if fields.target is None and fields.sparsity < share - _SAME:
        raise ValueError(f"--sparsity: {text} zeroes {share:g} of the weights by itself: give more")
    if fields.iterations > 1:
        raise ValueError(f"--iterations: {text} zeroes its share in one step")


# -- how it is stored


def _check_storage(fields: Fields) -> None:
    if fields.sparse_initializers and fields.pack != "no":
        raise ValueError("--sparse-initializers: zeros are stored as sparse_initializer or packed, not both")
    if fields.pack_values != "fp32" and fields.pack == "no":
        raise ValueError("--pack-values: values are packed only where pack is asked for")


# -- what it runs on


def _check_engine(fields: Fields) -> None:
    """Refuse what leaves the kernels of an engine without zeros that they can use."""
    if fields.engine is None:
        return
    from onnxprune.engines import ENGINES  # loads onnx_ir, which other recipes do without

    engine, parts = ENGINES[fields.engine], fields.parts
    flag = f"--engine {engine.name}"
    if parts.zeros is None:
        raise ValueError(f"{flag}: it is about zeros, and --structure {parts.text} leaves none: leave one of them out")
    if parts.rewritten:
        raise ValueError(f"{flag}: --structure {parts.text} writes zeros for engines without kernels for them")
    if engine.patterns and parts.texts[-1] not in engine.patterns:
        patterns = " or ".join(engine.patterns)
        raise ValueError(f"{flag}: {engine.called} reads zeros in {patterns}, not --structure {parts.text}")
    if fields.quantize in engine.refused:
        raise ValueError(f"--quantize {fields.quantize}: {engine.refused[fields.quantize]}")
    for setting in ("pack", "sparse_initializers"):
        if getattr(fields, setting) not in ("no", False):
            raise ValueError(f"{_flag(setting)}: {engine.called} finds zeros in plain weights alone: leave it out")
    asked = fields.target is None and fields.quality is None and not parts.mixed
    if asked and fields.sparsity <= engine.beyond + _SAME:
        share = f"{engine.beyond:.3g} of the weights"
        raise ValueError(f"--sparsity: {engine.called} uses zeros where they are more than {share}: give more")


# -- training


def _check_training(fields: Fields) -> None:
    """Refuse settings of training that contradict each other or the structure."""
    if fields.retrain is None:
        _check_untrained(fields)
    if fields.parts.removes and fields.alternate:
        raise ValueError("--alternate prunes single weights of one kind of layer at a time: --structure weights")
    if fields.parts.removes and fields.survivors == "rewind":
        raise ValueError("--survivors rewind goes back to weights of the original's shapes: --structure weights")
    if (fields.survivors == "rewind") != (fields.rewind_to is not None):
        raise ValueError("--survivors rewind and --rewind-to, the file with the weights, go together")
    if fields.shrink != "no" and fields.parts.mixed:
        raise ValueError("--shrink needs to know what goes in one step: not with a mix of structures")
    if fields.prune_every is not None:
        _check_pruning_while_training(fields)
    if fields.recover not in (("auto",), ("no",)):
        _check_recovered(fields)


def _check_untrained(fields: Fields) -> None:
    turns = flag_of(Fields.model_fields["survivors"])
    for setting, field in Fields.model_fields.items():
        flag = flag_of(field)
        of_turns = setting == "retrain_last" or (
            flag is not None and turns is not None and flag.subject == turns.subject
        )
        if of_turns and getattr(fields, setting) != field.get_default(call_default_factory=True):
            raise ValueError(f"{_flag(setting)}: only with --retrain")


def _check_pruning_while_training(fields: Fields) -> None:
    if fields.parts.units or fields.parts.sets is not None or fields.quality is not None:
        raise ValueError("--prune-every zeroes weights or blocks by share, neither units, N:M nor by --quality")
    if fields.iterations > 1 or fields.alternate or fields.shrink != "no":
        raise ValueError("--prune-every prunes within one training: not with --iterations, --alternate or --shrink")
    if fields.survivors in ("rewind", "reinit"):
        raise ValueError(f"--prune-every prunes while training, and --survivors {fields.survivors} would undo that")


def _check_recovered(fields: Fields) -> None:
    if fields.prune_every is not None:
        raise ValueError("--recover: with --prune-every the training itself is under way at each pruning: leave it out")
    if fields.alternate:
        raise ValueError("--recover: --alternate goes on with the weights as the training left them: leave it out")
    if fields.survivors in ("rewind", "reinit"):
        raise ValueError(f"--recover: --survivors {fields.survivors} puts other weights in the place of recovered ones")

"""What can be said of an operator: the fields of the table in `operators`.

An operator without an entry there has the defaults of `Operator`, which promise nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnxprune.graph import multiply_adds as counts

Kind = Literal["conv", "fc", "rnn", "norm", "embedding", "other"]
Role = Literal["weight", "bias", "scale", "mean", "variance", "other"]
Movement = Literal["", "same", "cast", "reshape", "permute", "rearrange", "pick", "repeat", "join", "pad"]


@dataclass(frozen=True)
class Slot:
    """An input that a contraction multiplies with its data. Axes count from the end where they are negative.

    Attributes:
        input: The number of the input.
        output: The axis that counts outputs: M of a Conv's [M, C, kernel].
        reduction: The axis that is summed over: C of a Conv, K of a MatMul.
        data: The input that it is multiplied with; the state of a recurrent cell has the axes of R itself.
        data_axis: The axis of the data that is summed over.
        swap: An attribute that swaps the last two axes of the weight where it is not 0: transB.
        data_swap: The same for the data: transA.
        packed: The numbers lie in blocks of bits, so that no element of the tensor is a weight.
    """

    input: int
    output: int
    reduction: int
    data: int = 0
    data_axis: int = -1
    swap: str = ""
    data_swap: str = ""
    packed: bool = False


@dataclass(frozen=True)
class Operator:
    """What is known of an operator.

    Attributes:
        name: Its key, such as "Conv" or "com.microsoft::FusedConv".
        kind: What layer it is to a user.
        weights: The inputs that may hold weights of a contraction, and their axes.
        grouped: What tells the number of groups of its weights: an attribute, or "each channel" where every channel is
            a group of its own. The groups lie on axis 0 of the weight. Empty where there are none.
        sees_windows: A convolution whose outputs see plain windows of its data.
        divisible: Some of its outputs can be computed from some of its inputs by a smaller node of the same operator.
        equation: Its axes follow from the attribute `equation`, as those of Einsum.
        biases: Inputs that are added to its outputs.
        roles: Other inputs that are learnt, and what they are.
        states: Inputs that hold a first state.
        tables: Inputs whose rows are looked up.
        packed_table: The input whose rows are looked up, of numbers in a few bits; None where there is none.
        indices: Inputs that index into another input: (that input, its axis; None for the attribute `axis`).
        lengths: Inputs that count steps.
        settings: Float inputs that configure the operator instead of being learnt.
        never_zeroed: Inputs that must not be zeroed to show that a unit is gone, since the operator divides by them.
        quantised: Inputs that hold quantised integers, with the inputs of their scale and zero point.
        result_quantised: The inputs of scale and zero point of its quantised results.
        result_zero_point: The output that is the zero point of its quantised results.
        multiply_adds: Counts them; see `multiply_adds`.
        plain: The operator that it is without the activation that its attribute `activation` names, or without the sum
            that it takes first.
        sum_output: The output that holds the sum of its first two inputs and of its last bias, of which it is the norm.
        movement: How it moves numbers without changing any: "same", "cast" (another type), "reshape", "permute",
            "rearrange" (both), "pick", "repeat", "join" and "pad". Empty where it changes them.
        data: The inputs that it moves or acts on; None for all.
        pointwise: Each result depends on one number of each operand: "unary" reads one operand, "broadcast" several.
        homogeneous: f(s x) = s f(x) for every s > 0, with the same f for each unit.
        keeps_mean: The mean of the results of a channel is that of its operands.
        within_range: Results lie between the least and the largest number of the operands.
        bounded: Results lie in [-1, 1], and are computed to a few roundings of 1.
        selects: Each result is one of the numbers in a window, as it was.
        passes_integers: Integers that are not negative come through as they are, some of them perhaps limited.
        adds: It sums its operands.
        shrinks: It takes many numbers together: "pool" (windows) or "reduce" (whole axes).
        passes_units: A unit of an operand reaches only those results that carry it.
        shape_only: It reads the shape of its operand, not the numbers.
        sized_by_values: The extents of its results are numbers that it reads.
        factor_rank: Its integer constants tell what an extent may have to be a multiple of, the most telling with 1.
        generates: It makes numbers from sizes alone.
        random: Its results are drawn at random.
        has_body: It runs a graph of its own.
        free: ONNX Runtime spends no time on it.
        joins_convolution: ONNX Runtime makes it part of the convolution before it.
        takes_nan: NaN has a meaning of its own to it.
        heads: The attribute that counts the heads of its queries.
        one_prompt: It continues a cache with several tokens for one sequence only.
        classifies: At the end of a model its results tell classes.
        cuts_off: Numbers beyond constant limits become these limits.
        head: The function of logits that it is: "softmax" or "log-softmax".
        compares: It says which of two numbers is larger.
        causal: It is an attention in which no token sees a later one, whatever its attributes say.
        of_angles: It takes the sine or the cosine of angles, or turns pairs of numbers by them.
    """

    name: str
    kind: Kind = "other"
    weights: tuple[Slot, ...] = ()
    grouped: str = ""
    sees_windows: bool = False
    divisible: bool = False
    equation: bool = False
    biases: tuple[int, ...] = ()
    roles: Mapping[int, Role] = field(default_factory=dict)
    states: tuple[int, ...] = ()
    tables: tuple[int, ...] = ()
    packed_table: int | None = None
    indices: Mapping[int, tuple[int, int | None]] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    settings: tuple[int, ...] = ()
    never_zeroed: tuple[int, ...] = ()
    quantised: Mapping[int, tuple[int | None, int | None]] = field(default_factory=dict)
    result_quantised: tuple[int, int] | None = None
    result_zero_point: int | None = None
    multiply_adds: counts.Formula = counts.not_counted
    plain: str = ""
    sum_output: int | None = None
    movement: Movement = ""
    data: tuple[int, ...] | None = (0,)
    pointwise: Literal["", "unary", "broadcast"] = ""
    homogeneous: bool = False
    keeps_mean: bool = False
    within_range: bool = False
    bounded: bool = False
    selects: bool = False
    passes_integers: bool = False
    adds: bool = False
    shrinks: Literal["", "pool", "reduce"] = ""
    passes_units: bool = False
    shape_only: bool = False
    sized_by_values: bool = False
    factor_rank: int = 0
    generates: bool = False
    random: bool = False
    has_body: bool = False
    free: bool = False
    joins_convolution: bool = False
    takes_nan: bool = False
    heads: str = ""
    one_prompt: bool = False
    classifies: bool = False
    cuts_off: bool = False
    head: Literal["", "softmax", "log-softmax"] = ""
    compares: bool = False
    causal: bool = False
    of_angles: bool = False

    @property
    def contracts(self) -> bool:
        """Whether it sums products of two operands."""
        return bool(self.weights) or self.equation or self.counted

    @property
    def counted(self) -> bool:
        """Whether it has multiply-adds, and a formula for them."""
        return self.multiply_adds not in (counts.no_products, counts.not_counted)

    @property
    def view(self) -> bool:
        """Whether all numbers come through, each once: in another order, shape or type."""
        return self.movement in ("same", "cast", "reshape", "permute")

    @property
    def keeps_zero_point(self) -> bool:
        """Whether quantised integers come through with the zero point that they had."""
        return self.movement not in ("", "cast", "pad") or self.selects or self.has_body

    @property
    def knows_zero_points(self) -> bool:
        """Whether it reads or makes quantised integers by their zero points."""
        return bool(self.quantised) or self.result_quantised is not None or self.result_zero_point is not None

    @property
    def dequantises(self) -> bool:
        """Whether it turns quantised integers into the numbers that they stand for, each in its place."""
        return self.pointwise == "unary" and bool(self.quantised) and self.result_quantised is None

    @property
    def scales(self) -> frozenset[int]:
        """Inputs that are scales of quantised numbers."""
        scales = {scale for scale, _ in self.quantised.values() if scale is not None}
        return frozenset(scales | ({self.result_quantised[0]} if self.result_quantised else set()))

    def packs(self, index: int) -> bool:
        """Whether an input may hold numbers in blocks of a few bits; see `packed`."""
        return index == self.packed_table or any(slot.packed and slot.input == index for slot in self.weights)

    def reads(self, index: int) -> bool:
        """Whether an input is among the data that it moves or acts on."""
        return self.data is None or index in self.data

    def role(self, index: int) -> Role:
        """What an input is to the network."""
        if index in self.biases:
            return "bias"
        if index in self.tables or any(slot.input == index for slot in self.weights):
            return "weight"
        return self.roles.get(index, "other")

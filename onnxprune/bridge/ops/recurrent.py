"""RNN, GRU and LSTM. Weights stay in ONNX's layout and gate order; they are permuted inside the forward pass.

The usual cells run on PyTorch's fused kernels; peepholes, clipping, other activations, input_forget,
linear_before_reset=0 and sequence_lens run step by step.

Shapes: x (steps, batch, inputs), w (directions, gates H, inputs), r (directions, gates H, H), b (directions,
2 gates H), initial states (directions, batch, H); y (steps, directions, batch, H). layout=1 puts the batch first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.bridge.ops.indexing import reverse_sequence
from onnxprune.bridge.registry import op

Activation = Callable[[torch.Tensor], torch.Tensor]
FusedWeights = tuple[list[torch.Tensor], bool]
Step = Callable[[torch.Tensor, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]

_ACTIVATIONS: dict[str, Callable[[torch.Tensor, float | None, float | None], torch.Tensor]] = {
    "relu": lambda x, a, b: torch.relu(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "affine": lambda x, a, b: (1.0 if a is None else a) * x + (0.0 if b is None else b),
    "leakyrelu": lambda x, a, b: F.leaky_relu(x, 0.01 if a is None else a),
    "thresholdedrelu": lambda x, a, b: torch.where(x > (1.0 if a is None else a), x, torch.zeros_like(x)),
    "scaledtanh": lambda x, a, b: (1.0 if a is None else a) * torch.tanh((1.0 if b is None else b) * x),
    "hardsigmoid": lambda x, a, b: torch.clamp((0.2 if a is None else a) * x + (0.5 if b is None else b), 0, 1),
    "elu": lambda x, a, b: F.elu(x, 1.0 if a is None else a),
    "softsign": lambda x, a, b: F.softsign(x),
    "softplus": lambda x, a, b: F.softplus(x),
}
_TAKES = {"affine": 2, "leakyrelu": 1, "thresholdedrelu": 1, "scaledtanh": 2, "hardsigmoid": 2, "elu": 1}


@dataclass(frozen=True)
class Cell:
    """The attributes that RNN, GRU and LSTM share."""

    hidden_size: int
    direction: str = "forward"
    activations: Sequence[str] = ()
    activation_alpha: Sequence[float] = ()
    activation_beta: Sequence[float] = ()
    clip: float | None = None
    layout: int = 0
    default: Sequence[str] = field(default=("Tanh",))

    @property
    def plain(self) -> bool:
        """Whether the activations are the default ones, without clipping."""
        directions = 2 if self.direction == "bidirectional" else 1
        names = [name.lower() for name in self.activations]
        return self.clip is None and (not names or names == [name.lower() for name in self.default] * directions)

    def functions(self, direction: int) -> list[Activation]:
        """The activations of one direction, with their parameters, which are listed only where one is taken."""
        directions = 2 if self.direction == "bidirectional" else 1
        names = [name.lower() for name in (self.activations or tuple(self.default) * directions)]
        alphas, betas = list(self.activation_alpha), list(self.activation_beta)
        made: list[Activation] = []
        for name in names:
            takes = _TAKES.get(name, 0)
            a = alphas.pop(0) if takes >= 1 and alphas else None
            b = betas.pop(0) if takes >= 2 and betas else None
            made.append(lambda x, run=_ACTIVATIONS[name], a=a, b=b: run(x, a, b))  # type: ignore[misc]
        per = len(self.default)
        return made[direction * per : (direction + 1) * per]

    def clipped(self, x: torch.Tensor) -> torch.Tensor:
        """The input of an activation, cut off at +-clip."""
        return x if self.clip is None else torch.clamp(x, -self.clip, self.clip)


def _run(
    x: torch.Tensor, lengths: torch.Tensor | None, states: tuple[torch.Tensor, ...], step: Step, backward: bool
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """One direction: steps over x; shorter sequences keep their last state, and give zeros after their end."""
    if backward:
        x = x.flip(0) if lengths is None else reverse_sequence(x, lengths, 1, 0)
    rows = []
    for t in range(x.shape[0]):
        new = step(x[t], states)
        if lengths is not None:
            going = (t < lengths).reshape(-1, 1)
            states = tuple(torch.where(going, n, s) for n, s in zip(new, states, strict=True))
            rows.append(torch.where(going, new[0], torch.zeros_like(new[0])))
        else:
            states = new
            rows.append(new[0])
    y = torch.stack(rows)
    if backward:
        y = y.flip(0) if lengths is None else reverse_sequence(y, lengths, 1, 0)
    return y, states


def _directions(
    cell: Cell,
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    initial: Sequence[torch.Tensor],
    make_step: Callable[[int, list[Activation]], Step],
) -> tuple[torch.Tensor, ...]:
    """All directions: y (steps, directions, batch, H) and the last states (directions, batch, H)."""
    outputs, last = [], []
    for index in range(initial[0].shape[0]):
        step = make_step(index, cell.functions(index))
        backward = cell.direction == "reverse" or index == 1
        y, states = _run(x, lengths, tuple(state[index] for state in initial), step, backward)
        outputs.append(y)
        last.append(states)
    ends = [torch.stack([states[i] for states in last]) for i in range(len(initial))]
    return (torch.stack(outputs, dim=1), *ends)


def _initial(state: torch.Tensor | None, x: torch.Tensor, w: torch.Tensor, cell: Cell) -> torch.Tensor:
    if state is None:
        return x.new_zeros(w.shape[0], x.shape[1], cell.hidden_size)
    return state.transpose(0, 1) if cell.layout else state


def _laid_out(results: tuple[torch.Tensor, ...], layout: int) -> tuple[torch.Tensor, ...]:
    """layout=1: y (batch, steps, directions, H), states (batch, directions, H)."""
    if not layout:
        return results
    return (results[0].permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in results[1:]))


def _fused(function: Callable[..., Any], cell: Cell, x: torch.Tensor, states: Any, weights: FusedWeights) -> Any:
    """PyTorch's own kernel for a whole sequence in one or both directions."""
    flat, has_bias = weights
    backward, both = cell.direction == "reverse", cell.direction == "bidirectional"
    y, *last = function(x.flip(0) if backward else x, states, flat, has_bias, 1, 0.0, False, both, False)
    y = y.flip(0) if backward else y
    return _laid_out((_unfolded(y, 2 if both else 1), *last), cell.layout)


def _fused_weights(w: torch.Tensor, r: torch.Tensor, b: torch.Tensor | None, order: Sequence[int]) -> FusedWeights:
    """PyTorch's flat weight list, with gates in PyTorch's order, and whether it holds biases."""

    def ordered(matrix: torch.Tensor) -> torch.Tensor:
        if list(order) == list(range(len(order))):
            return matrix
        parts = matrix.chunk(len(order), dim=0)
        return torch.cat([parts[i] for i in order])

    weights = []
    for d in range(w.shape[0]):
        weights += [ordered(w[d]), ordered(r[d])]
        if b is not None:
            weights += [ordered(half) for half in b[d].chunk(2)]
    return weights, b is not None


def _unfolded(y: torch.Tensor, directions: int) -> torch.Tensor:
    """PyTorch's (steps, batch, directions H) as ONNX's (steps, directions, batch, H)."""
    return y.reshape(y.shape[0], y.shape[1], directions, -1).transpose(1, 2)


def _halves(b: torch.Tensor | None, w: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    if b is None:
        zero = w.new_zeros(w.shape[1])
        return zero, zero
    wb, rb = b[index].chunk(2)
    return wb, rb


@op("RNN", fixed=(4,), multiple=True)
def rnn(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: torch.Tensor | None = None,
    initial_h: torch.Tensor | None = None,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: Sequence[str] = (),
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[torch.Tensor, ...]:
    """h' = f(W x + Wb + R h + Rb). Gives all states and the last."""
    cell = Cell(r.shape[-1], direction, activations, activation_alpha, activation_beta, clip, layout)
    x = x.transpose(0, 1) if layout else x
    h = _initial(initial_h, x, w, cell)
    if cell.plain and sequence_lens is None:
        return _fused(torch.rnn_tanh, cell, x, h, _fused_weights(w, r, b, (0,)))

    def make_step(index: int, functions: list[Activation]) -> Step:
        wb, rb = _halves(b, w, index)

        def step(xt: torch.Tensor, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (functions[0](cell.clipped(F.linear(xt, w[index], wb) + F.linear(states[0], r[index], rb))),)

        return step

    return _laid_out(_directions(cell, x, sequence_lens, (h,), make_step), layout)


@op("GRU", fixed=(4,), multiple=True)
def gru(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: torch.Tensor | None = None,
    initial_h: torch.Tensor | None = None,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: Sequence[str] = (),
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 0,
) -> tuple[torch.Tensor, ...]:
    """Gates z, r, h in this order. Reset acts before R_h (as published), or after it with linear_before_reset."""
    default = ("Sigmoid", "Tanh")
    cell = Cell(r.shape[-1], direction, activations, activation_alpha, activation_beta, clip, layout, default)
    x = x.transpose(0, 1) if layout else x
    h = _initial(initial_h, x, w, cell)
    if cell.plain and linear_before_reset and sequence_lens is None:
        return _fused(torch.gru, cell, x, h, _fused_weights(w, r, b, (1, 0, 2)))

    def make_step(index: int, functions: list[Activation]) -> Step:
        wb, rb = _halves(b, w, index)
        size = cell.hidden_size
        r_gates, r_new = r[index][: 2 * size], r[index][2 * size :]
        rb_gates, rb_new = rb[: 2 * size], rb[2 * size :]

        def step(xt: torch.Tensor, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            (ht,) = states
            from_x = F.linear(xt, w[index], wb)
            gates = functions[0](cell.clipped(from_x[:, : 2 * size] + F.linear(ht, r_gates, rb_gates)))
            update, reset = gates.chunk(2, dim=1)
            recurrent = (
                reset * F.linear(ht, r_new, rb_new) if linear_before_reset else F.linear(reset * ht, r_new, rb_new)
            )
            new = functions[1](cell.clipped(from_x[:, 2 * size :] + recurrent))
            return ((1 - update) * new + update * ht,)

        return step

    return _laid_out(_directions(cell, x, sequence_lens, (h,), make_step), layout)


@op("LSTM", fixed=(4,), multiple=True)
def lstm(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: torch.Tensor | None = None,
    initial_h: torch.Tensor | None = None,
    initial_c: torch.Tensor | None = None,
    p: torch.Tensor | None = None,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: Sequence[str] = (),
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[torch.Tensor, ...]:
    """Gates i, o, f, c in this order; peepholes p (directions, 3 H) as i, o, f. Gives all h, last h and last c."""
    default = ("Sigmoid", "Tanh", "Tanh")
    cell = Cell(r.shape[-1], direction, activations, activation_alpha, activation_beta, clip, layout, default)
    x = x.transpose(0, 1) if layout else x
    h, c = _initial(initial_h, x, w, cell), _initial(initial_c, x, w, cell)
    if cell.plain and p is None and not input_forget and sequence_lens is None:
        states = (h.contiguous(), c.contiguous())
        return _fused(torch.lstm, cell, x, states, _fused_weights(w, r, b, (0, 2, 3, 1)))

    def make_step(index: int, functions: list[Activation]) -> Step:
        wb, rb = _halves(b, w, index)
        peep = w.new_zeros(3 * cell.hidden_size) if p is None else p[index]
        return _lstm_step(cell, functions, w[index], r[index], wb + rb, peep, bool(input_forget))

    return _laid_out(_directions(cell, x, sequence_lens, (h, c), make_step), layout)


def _lstm_step(
    cell: Cell,
    functions: list[Activation],
    w: torch.Tensor,
    r: torch.Tensor,
    bias: torch.Tensor,
    peep: torch.Tensor,
    input_forget: bool,
) -> Step:
    peep_i, peep_o, peep_f = peep.chunk(3)
    f, g, h = functions

    def step(xt: torch.Tensor, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        ht, ct = states
        i, o, forget, new = (F.linear(xt, w, bias) + F.linear(ht, r)).chunk(4, dim=1)
        i = f(cell.clipped(i + peep_i * ct))
        forget = 1 - i if input_forget else f(cell.clipped(forget + peep_f * ct))
        ct = forget * ct + i * g(cell.clipped(new))
        o = f(cell.clipped(o + peep_o * ct))
        return o * h(ct), ct

    return step

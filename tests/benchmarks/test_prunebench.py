"""prunebench's definitions: what is counted, that methods reach their ratio, that a run that was cut off goes on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import prunebench
import pytest
from lenets import Sets
from prunebench_count import Counts, count
from prunebench_findings import FINDINGS, compare, conclusion
from prunebench_methods import Method, cut
from prunebench_networks import NETWORKS, Network
from prunebench_table import Key, Measured, Row, Table
from torch import nn

from onnxprune.data.readers import Data
from onnxprune.data.sources import Arrays
from onnxprune.runtime import make_session, run
from onnxprune.training import TrainSettings

rng = np.random.default_rng(0)


def model_of(text: str, **arrays: np.ndarray) -> ir.Model:
    """A graph written as text, with these initializers."""
    model = ir.from_onnx_text(text)
    for name, array in arrays.items():
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    return model


def sparse(*shape: int) -> np.ndarray:
    array = rng.standard_normal(shape).astype(np.float32)
    return np.where(rng.random(shape) < 0.4, array, np.float32(0))


CONV = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4,11,9] x) => (float y) {{ y = Conv<{0}>(x, w) }}'


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ("strides = [1, 1]", (6, 4, 3, 3)),  # valid padding: the output is smaller than the input
        ("strides = [2, 1]", (6, 4, 3, 2)),
        ("group = 2", (6, 2, 3, 3)),
        ("group = 4", (8, 1, 3, 3)),
        ("dilations = [2, 3]", (6, 4, 3, 3)),
        ("group = 2, dilations = [2, 2], strides = [2, 2]", (4, 2, 3, 3)),
    ],
)
def test_multiply_adds_of_a_convolution_are_those_that_it_does(attributes: str, shape: tuple[int, ...]) -> None:
    """On an image of ones, weights of 1 where they are not zero make the outputs add up to the multiply-adds."""
    weights, image = sparse(*shape), {"x": np.ones((1, 4, 11, 9), np.float32)}
    done = {
        which: run(make_session(model_of(CONV.format(attributes), w=array.astype(np.float32))), image)["y"].sum()
        for which, array in (("all", np.ones(shape)), ("nonzero", weights != 0))
    }
    counted = count(model_of(CONV.format(attributes), w=weights), image)
    assert (counted.macs, counted.nonzero_macs) == (done["all"], done["nonzero"])


def test_padding_counts_as_the_full_kernel_at_every_output() -> None:
    weights = sparse(6, 4, 3, 3)
    counted = count(model_of(CONV.format("pads = [1, 1, 1, 1]"), w=weights), {"x": np.ones((1, 4, 11, 9), np.float32)})
    assert counted.macs == 11 * 9 * weights.size
    assert counted.nonzero_macs == 11 * 9 * np.count_nonzero(weights)


def test_parameters_are_weights_biases_and_the_scales_and_shifts_of_batchnorm() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,4,3,3] x) => (float[1,2] y) {
        c = Conv(x, w, b)
        n = BatchNormalization(c, scale, shift, mean, variance)
        f = Flatten(n)
        y = Gemm<transB = 1>(f, v)
    }"""
    arrays = {"w": sparse(3, 4, 3, 3), "b": np.array([0, 1, 2]), "scale": np.ones(3), "shift": np.array([1, 0, 0]),
              "mean": np.zeros(3), "variance": np.ones(3), "v": sparse(2, 3)}  # fmt: skip
    model = model_of(text, **{name: array.astype(np.float32) for name, array in arrays.items()})
    left = np.count_nonzero(arrays["w"]) + np.count_nonzero(arrays["v"])
    assert count(model, {"x": np.ones((1, 4, 3, 3), np.float32)}) == Counts(
        parameters=108 + 3 + 6 + 6, nonzero=left + 2 + 3 + 1, macs=108 + 6, nonzero_macs=left
    )


# --- methods and the run, on a tiny network and made-up images


def tiny(share: float = 1.0) -> nn.Module:
    n = max(1, round(32 * share))
    return nn.Sequential(nn.Flatten(), nn.Linear(784, n), nn.ReLU(), nn.Linear(n, 16), nn.ReLU(), nn.Linear(16, 10))


STEPS = TrainSettings(steps=3, batch_size=32, metric="accuracy", device="cpu")
METHODS = (Method("weights", "magnitude"), Method("weights", "random", "magnitude"), Method("channels", "magnitude"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> prunebench.Place:
    """A benchmark of one network with a few methods, at 4x only, on 96 images."""
    images, labels = rng.standard_normal((96, 1, 28, 28)).astype(np.float32), np.arange(96) % 10
    arrays = Arrays((images,), (labels,))
    sets = Sets(Data(arrays, (0,)), Data(arrays, (0,)), (images, labels))
    monkeypatch.setitem(NETWORKS, "tiny", Network(tiny, STEPS, STEPS, {"l1": 1e-4}, METHODS))
    monkeypatch.setattr(prunebench, "RATIOS", (4,))
    monkeypatch.setattr(prunebench, "CHECKED", (4,))
    monkeypatch.setattr(prunebench, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(prunebench, "load_sets", lambda root: sets)
    return prunebench.Place("tiny", "mnist", 0, sets, tmp_path / "work")


def test_every_method_reaches_its_ratio(place: prunebench.Place) -> None:
    dense = place.dense()
    for ratio in (2, 8):
        exact = cut(dense, Method("weights", "magnitude"), ratio)
        assert count(exact.model, place.feeds(1)).nonzero == pytest.approx(place.counts.parameters / ratio, abs=1)
        alike = cut(dense, Method("weights", "random", "magnitude"), ratio)
        assert {n: m.sum() for n, m in alike.masks.items()} == {n: m.sum() for n, m in exact.masks.items()}
        shrunk = count(cut(dense, Method("channels", "magnitude"), ratio).model, place.feeds(1))
        assert shrunk.parameters == shrunk.nonzero == pytest.approx(place.counts.parameters / ratio, rel=0.15)


def test_a_run_that_was_cut_off_makes_what_is_missing_and_nothing_else(
    place: prunebench.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[prunebench.Job] = []
    once = prunebench.Place.run
    monkeypatch.setattr(prunebench.Place, "run", lambda self, job: (made.append(job), once(self, job))[1])

    def go() -> dict[Key, Measured]:
        made.clear()
        prunebench.run({"mnist": Path()}, place.work.parent, ["tiny"], [0])
        return Table(path).rows

    path = prunebench.FOLDER / "tiny-mnist.csv"
    whole = go()
    assert len(made) == len(whole) == len(list(prunebench.queue(["tiny"], ["mnist"], [0])))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:20])  # cut off while the last but one was written
    again = go()
    assert len(made) == 2
    assert again.keys() == whole.keys()
    assert {k: m.top1 for k, m in again.items()} == {k: m.top1 for k, m in whole.items()}
    go()
    assert made == []


def test_a_table_gives_back_what_was_written(tmp_path: Path) -> None:
    row = result(seed=1, top1=97.5)
    Table(tmp_path / "t.csv").add(*row)
    (read,) = Table(tmp_path / "t.csv").rows.items()
    assert read[0] == row.key
    assert math.isnan(read[1].latency)
    assert read[1]._replace(latency=0) == row.measured._replace(latency=0)


# --- findings


def result(seed: int, top1: float, start: str = "finetune", ratio: int = 4) -> Row:
    key = Key("net", "data", seed, "weights", "magnitude", "global", start, "none", ratio)
    return Row(key, Measured("zeros", 100, 25, 4.0, 1000, 250, 4.0, top1, 50.0, 90.0, 400, 100, math.nan, 3, 1.25))


@pytest.mark.parametrize(
    ("others", "verdict"),
    [((90, 91, 92), "holds"), ((90, 96, 92), "level"), ((96, 97, 98), "reversed"), ((94.9, 94.8, 91), "level")],
)
def test_a_finding_holds_where_all_seeds_agree_beyond_their_spread(others: tuple[float, ...], verdict: str) -> None:
    (finding,) = (f for f in FINDINGS if f.title.startswith("Keeping the weights"))
    rows = [result(s, 95.0) for s in range(3)] + [result(s, top1, "reinit") for s, top1 in enumerate(others)]
    lines = list(compare(finding, rows))
    assert [line.verdict for line in lines] == [verdict]
    assert conclusion(finding, lines).startswith("**Reproduced**" if verdict == "holds" else "**Not reproduced**")

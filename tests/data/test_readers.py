"""Data sources: what is read, and what is refused in one sentence."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image
from training_models import blobs, convnet, mlp

from onnxprune.data.fit import TargetSpec, fit_target, fit_targets
from onnxprune.data.readers import read_data
from onnxprune.data.sources import Arrays, Batch, first_batch, split
from onnxprune.errors import DataError, RecipeError
from onnxprune.recipe.training import DataSettings
from onnxprune.training.feed import Feed

X, LABEL = blobs(20)


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


# --- .npz


def test_an_npz_gives_inputs_by_name_and_labels(tmp_path: Path) -> None:
    data = read_data(save(tmp_path, x=X, label=LABEL), mlp())
    batch = first_batch(data.source, 5)
    assert np.array_equal(batch.inputs[0], X[:5])
    assert np.array_equal(batch.targets[0], LABEL[:5])
    assert data.outputs == (0,)


def test_labels_of_a_model_without_outputs_are_refused(tmp_path: Path) -> None:
    model = mlp()
    del model.graph.outputs[:]
    with pytest.raises(DataError, match="the model has no output to compare it with"):
        read_data(save(tmp_path, x=X, label=LABEL), model)


def test_targets_may_be_named_by_the_models_output(tmp_path: Path) -> None:
    target = np.ones((20, 3), np.float32)
    data = read_data(save(tmp_path, x=X, scores=target), mlp())
    assert data.outputs == (0,)
    assert first_batch(data.source, 20).targets[0].shape == (20, 3)


def test_the_only_array_is_the_only_input_whatever_its_name(tmp_path: Path) -> None:
    data = read_data(save(tmp_path, images=X, label=LABEL), mlp())
    assert np.array_equal(first_batch(data.source, 20).inputs[0], X)


def test_without_labels_there_are_no_targets(tmp_path: Path) -> None:
    data = read_data(save(tmp_path, x=X), mlp())
    assert data.outputs == ()
    assert first_batch(data.source, 5).targets == ()


def test_float64_is_cast_to_the_models_float32(tmp_path: Path) -> None:
    data = read_data(save(tmp_path, x=X.astype(np.float64), label=LABEL), mlp())
    assert first_batch(data.source, 5).inputs[0].dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": X, "z": X, "label": LABEL}, "no array 'x'"),
        ({"x": X, "label": LABEL, "lable": LABEL}, "'lable' that is neither an input"),
        ({"x": X[:, :7], "label": LABEL}, r"shape \[N, 7\]; the model wants \[N, 8\]"),
        ({"x": X[..., None], "label": LABEL}, r"shape \[N, 8, 1\]"),
        ({"x": (X * 10).astype(np.uint8), "label": LABEL}, "type uint8; the model wants float32"),
        ({"x": X, "label": LABEL[:7]}, "different numbers of samples"),
        ({"x": X[:0], "label": LABEL[:0]}, "empty"),
        ({"label": LABEL}, "no array 'x'"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_data(save(tmp_path, **arrays), mlp())


class Malicious:
    """Unpickling it leaves a mark."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Malicious, "ran", True)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, x=X, label=np.array([Malicious()], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_data(path, mlp())
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(DataError, match="cannot be read"):
        read_data(bare, mlp())
    assert not Malicious.ran


@pytest.mark.parametrize("name", ["missing.npz", "missing.csv", "missing", "setup.toml"])
def test_missing_and_unknown_data_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="No data at"):
        read_data(name, mlp())


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mat").write_text("")
    with pytest.raises(DataError, match="no kind of data that is known"):
        read_data(tmp_path / "data.mat", mlp())


# --- CSV


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


HEADER = ",".join(f"f{i}" for i in range(8)) + ",kind\n"


def test_a_csv_gives_features_and_the_last_column_as_target(tmp_path: Path) -> None:
    path = write_csv(tmp_path, HEADER + "1,2,3,4,5,6,7,8,2\n0.5,0,0,0,0,0,0,0,1\n")
    batch = first_batch(read_data(path, mlp()).source, 2)
    assert batch.inputs[0].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [0.5, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.inputs[0].dtype == np.float32
    assert batch.targets[0].tolist() == [2, 1]
    assert batch.targets[0].dtype == np.int64


def test_the_target_column_can_be_named_and_real(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "kind," + HEADER[:-6] + "\n2.0,1,2,3,4,5,6,7,8\n")
    target = first_batch(read_data(path, mlp(), DataSettings(target="kind")).source, 2).targets[0]
    assert target.dtype == np.float64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "empty"),
        ("", "cannot be read as a table"),
        (HEADER + "1,2,3,4,5,6,7,8\n", "row 2: 8 fields where the header has 9"),
        (HEADER + "1,2,3,4,5,6,7,8,0\n1,2,red,4,5,6,7,8,0\n", "row 3, column 'f2': 'red' is no number"),
        ("a,kind\n1,0\n", r"shape \[N, 1\]"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_data(write_csv(tmp_path, text), mlp())


def test_an_unknown_target_column_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path, HEADER + "1,2,3,4,5,6,7,8,0\n")
    with pytest.raises(DataError, match="no column 'sort'"):
        read_data(path, mlp(), DataSettings(target="sort"))


# --- images


def write_images(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir()
        for i in range(2):
            Image.new("L", (8, 8), 100 * number + i).save(folder / name / f"{i}.png")
    return folder


def test_images_are_labelled_by_their_folder(tmp_path: Path) -> None:
    settings = DataSettings(mean=(0.5,), std=(0.25,))
    batch = first_batch(read_data(write_images(tmp_path), convnet(), settings).source, 4)
    assert batch.inputs[0].shape == (4, 1, 8, 8)
    assert batch.targets[0].tolist() == [0, 0, 1, 1]
    assert batch.inputs[0][2, 0, 0, 0] == pytest.approx((100 / 255 - 0.5) / 0.25)


def test_images_without_folders_are_unlabelled(tmp_path: Path) -> None:
    write_images(tmp_path)
    data = read_data(tmp_path / "cat", convnet())
    assert data.outputs == ()
    assert data.source.count == 2


def test_images_are_resized_and_laid_out_as_the_model_wants(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "red.png")
    model = convnet()
    model.graph.inputs[0].shape = ir.Shape(["N", 12, 10, 3])
    batch = first_batch(read_data(tmp_path, model, DataSettings(layout="NHWC")).source, 1)
    assert batch.inputs[0].shape == (1, 12, 10, 3)
    assert batch.inputs[0][0, 5, 5].tolist() == [1, 0, 0]


def test_integer_inputs_get_raw_pixels(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 200).save(tmp_path / "grey.png")
    model = convnet()
    model.graph.inputs[0].type = ir.TensorType(ir.DataType.UINT8)
    image = first_batch(read_data(tmp_path, model).source, 1).inputs[0]
    assert image.dtype == np.uint8
    assert image.max() == 200


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        read_data(tmp_path, convnet())


def test_a_wrong_layout_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is the layout right"):
        read_data(write_images(tmp_path), convnet(), DataSettings(layout="NHWC"))


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="broken.png' cannot be read"):
        read_data(tmp_path, convnet())


# --- functions


def batches_by_name() -> Iterator[dict[str, np.ndarray]]:
    yield {"x": X[:5], "label": LABEL[:5]}
    yield {"x": X[5:8], "label": LABEL[5:8]}


def batches_in_order() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield X[:5], LABEL[:5]


def no_batches() -> Iterator[None]:
    yield from ()


def bad_second_batch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield X[:5], LABEL[:5]
    yield X[:5, :3], LABEL[:5]


@pytest.mark.parametrize("name", ["batches_by_name", "batches_in_order"])
def test_a_function_yields_batches_anew_for_each_epoch(name: str) -> None:
    data = read_data(f"{__name__}:{name}", mlp())
    for _ in range(2):
        assert np.array_equal(next(iter(data.source.epoch(64))).inputs[0], X[:5])
    assert data.outputs == (0,)


def test_a_function_that_yields_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="yields nothing"):
        read_data(f"{__name__}:no_batches", mlp())


def test_every_batch_of_a_function_is_checked() -> None:
    with pytest.raises(DataError, match=r"shape \[N, 3\]"):
        list(read_data(f"{__name__}:bad_second_batch", mlp()).source.epoch(64))


def test_a_function_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match="has no function 'nothing'"):
        read_data(f"{__name__}:nothing", mlp())


# --- targets


def test_labels_out_of_range_are_refused() -> None:
    for wrong in (3, -1):
        with pytest.raises(DataError, match=f"Label {wrong} is out of range: output 'scores' has classes 0 to 2"):
            fit_target(np.array([0, wrong]), (2, 3), "scores")


def test_labels_fit_images_sequences_and_columns() -> None:
    assert fit_target(np.zeros((2, 5, 5), np.uint8), (2, 3, 5, 5), "y").dtype == np.int64
    assert fit_target(np.zeros((2, 7), int), (2, 7, 3), "y").shape == (2, 7)
    assert fit_target(np.zeros((2, 1), int), (2, 3), "y").shape == (2,)


def test_real_targets_take_the_outputs_shape() -> None:
    assert fit_target(np.zeros(4), (4, 1), "y").shape == (4, 1)
    with pytest.raises(DataError, match=r"shape \[N, 2\]; the model gives \[N, 3\]"):
        fit_target(np.zeros((4, 2)), (4, 3), "y")


def test_every_batch_of_targets_is_checked() -> None:
    source = Stream([Batch((X[:2],), (np.array([0, 1]),)), Batch((X[:2],), (np.array([0, 9]),))])
    with pytest.raises(DataError, match="Label 9"):
        list(fit_targets(source, [TargetSpec("scores", (2, 3))]).epoch(2))


class Stream:
    """A source that can only be read from front to back."""

    count = None

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def epoch(self, batch_size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
        return iter(self.batches)


# --- inputs without a sample axis


def test_an_input_without_axes_holds_for_all_samples() -> None:
    rate = np.array(16000)
    source = Arrays((rate, X), (LABEL,))
    assert source.count == 20
    batches = list(source.epoch(8))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert all(batch.inputs[0] == 16000 and batch.inputs[0].ndim == 0 for batch in batches)
    for world in (1, 2):
        shards = list(Feed(source, 8, torch.device("cpu"), 0, world).epoch(seed=0))
        assert [len(shard.inputs[1]) for shard in shards] == [8 // world, 8 // world, 4 // world]
        assert all(int(shard.inputs[0]) == 16000 for shard in shards)


# --- splitting


def test_a_split_is_disjoint_complete_and_decided_by_the_seed() -> None:
    source = Arrays((np.arange(50)[:, None],))
    train, held = split(source, 0.2, seed=1)
    assert held is not None
    numbers = [np.concatenate([b.inputs[0][:, 0] for b in part.epoch(7)]).tolist() for part in (train, held)]
    assert len(numbers[1]) == 10
    assert sorted(numbers[0] + numbers[1]) == list(range(50))
    again, _ = split(source, 0.2, seed=1)
    assert np.array_equal(first_batch(again, 50).inputs[0], first_batch(train, 50).inputs[0])
    other, _ = split(source, 0.2, seed=2)
    assert not np.array_equal(first_batch(other, 50).inputs[0], first_batch(train, 50).inputs[0])


def test_nothing_can_be_held_out_of_a_stream() -> None:
    stream = Stream([])
    assert split(stream, 0.2, seed=0) == (stream, None)


def test_too_few_samples_to_split_are_refused() -> None:
    with pytest.raises(DataError, match="too few to hold out"):
        split(Arrays((X[:3],)), 0.1, seed=0)

"""From what the user names to a `Source`: .npz, .npy, a folder of images by class, CSV, text, or `module:function`.

Each kind is one registered reader `(reference, model, settings) -> Data`, tried in order by what it `accepts`.
``--data``, ``--eval-data``, ``--calibration`` and ``--inputs`` are all read here. Nothing is unpickled. What a reader
does not understand it refuses by name; it never leaves an array or file out in silence.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import npz
from onnxprune.data.detection.labels import has_labels
from onnxprune.data.detection.pictures import BoxLabels, read_pictures
from onnxprune.data.fit import InputSpec, find_axes, fit_source, input_specs, output_specs
from onnxprune.data.images import ImageFolder, find_images
from onnxprune.data.sources import Array, Arrays, Axes, Batch, Source, first_batch
from onnxprune.data.stream import first_of, next_within, one_thread
from onnxprune.data.text import read_text
from onnxprune.data.text_files import is_table, is_table_of_pairs, is_text
from onnxprune.errors import DataError
from onnxprune.graph.hints import hints_of
from onnxprune.plugins import Plugins, Registry, is_reference, load_function
from onnxprune.recipe.training import DataSettings

LABEL = "label"


@dataclass(frozen=True)
class Data:
    """A source that fits the model's inputs.

    Attributes:
        source: The samples.
        outputs: The k-th target belongs to the model's output of this number.
        name: What messages call the data.
        metric: What suits them first; None where targets and outputs decide.
        scores: Of pairs of sentences, which are the samples 2 i and 2 i + 1; None where they are no pairs.
        batch: Samples that are run at once where the model takes any number; None for the usual number.
        boxes: The labelled boxes of the pictures; None where they have none.
    """

    source: Source
    outputs: tuple[int, ...]
    name: str = "the data"
    metric: str | None = None
    scores: Array | None = None
    batch: int | None = None
    boxes: BoxLabels | None = None


AnyData = str | Path | Mapping[str, Any] | Data
"""What data are given as: a path, ``module:function``, arrays by name, or data that are open already."""

Reader = Callable[[str, ir.Model, DataSettings], Data]


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes:
        accepts: Whether it is what a reference names.
        read: Reads it.
    """

    accepts: Callable[[str], bool]
    read: Reader


READERS: Registry[Kind] = Registry("kind of data", Plugins("onnxprune.readers"))
"""All kinds of data, by how they are called in messages; the first that accepts a reference reads it."""


def reader(name: str, accepts: Callable[[str], bool]) -> Callable[[Reader], Reader]:
    """Register a reader for the references that `accepts` says yes to."""

    def register(read: Reader) -> Reader:
        READERS.add(name, Kind(accepts, read), read)
        return read

    return register


def open_data(model: ir.Model, data: AnyData, reading: DataSettings | None = None) -> Data:
    """Open one data set: what a file, a folder or `module:function` holds, or arrays by name.

    Raises:
        DataError: See `read_data`.
    """
    if isinstance(data, Data):
        return data
    if not isinstance(data, Mapping):
        return read_data(data, model, reading)
    return _fitted(_by_name(data, model, "the data"), model)


def read_data(reference: str | Path, model: ir.Model, settings: DataSettings | None = None) -> Data:
    """Open the data that `reference` names and check that they fit the model's inputs.

    Raises:
        DataError: No such data, unreadable, empty, or of other names, shapes or types than the model's inputs.
        RecipeError: The `module:function` cannot be loaded.
    """
    name = str(reference)
    for kind in READERS.values():
        if kind.accepts(name):
            return _fitted(kind.read(name, model, settings or DataSettings()), model)
    npz.require_file(Path(name))
    raise DataError(f"'{name}' is no kind of data that is known: {', '.join(READERS)}.")


def _fitted(data: Data, model: ir.Model) -> Data:
    with saying(data.name):
        fitted = fit_source(data.source, input_specs(model))
        first_batch(fitted, 2)
    return replace(data, source=fitted)


@contextmanager
def saying(what: str) -> Iterator[None]:
    """Put the name of the data before the message of a DataError that lacks it."""
    try:
        yield
    except DataError as error:
        if what in str(error):
            raise
        raise DataError(f"{what}: {error}") from error


@reader(".npz", lambda name: Path(name).suffix.lower() == ".npz")
def read_npz(reference: str, model: ir.Model, settings: DataSettings) -> Data:
    """Arrays named by the model's inputs, `label` for the first output, and any named by the model's outputs."""
    return _by_name(npz.read_npz(Path(reference)), model, f"'{reference}'")


@reader(".npy", lambda name: Path(name).suffix.lower() == ".npy")
def read_npy(reference: str, model: ir.Model, settings: DataSettings) -> Data:
    """The one array that a model with one input takes, without labels."""
    specs = input_specs(model)
    if len(specs) != 1:
        raise DataError(f"'{reference}' holds one array, but the model takes {len(specs)}: put them into an .npz file, "
                        "each under the name of its input.")  # fmt: skip
    return _by_name({specs[0].name: npz.read_npy(Path(reference))}, model, f"'{reference}'")


def _by_name(arrays: Mapping[str, Any], model: ir.Model, where: str) -> Data:
    batch, outputs = by_name(arrays, model, where)
    with saying(where):
        return Data(Arrays(batch.inputs, batch.targets, batch.axes, batch.target_axes), outputs, where)


def by_name(arrays: Mapping[str, Any], model: ir.Model, where: str) -> tuple[Batch, tuple[int, ...]]:
    """Sort named arrays into a batch of inputs and targets, and the output numbers of the targets.

    The one array that is neither label nor target is the input of a model with one, whatever its name.

    Raises:
        DataError: An input is missing, or a name belongs to nothing.
    """
    specs, results = input_specs(model), output_specs(model)
    inputs, outputs = [spec.name for spec in specs], [spec.name for spec in results]
    others = [name for name in arrays if name != LABEL and name not in outputs]
    if len(inputs) == len(others) == 1:
        arrays = {inputs[0] if name == others[0] else name: array for name, array in arrays.items()}
    for name in inputs:
        if name not in arrays:
            raise DataError(f"{where} has no array '{name}', which the model takes as input; it has "
                            f"{', '.join(map(repr, arrays)) or 'none'}.")  # fmt: skip
    for name in arrays:
        if name not in inputs and name not in outputs and name != LABEL:
            raise DataError(f"{where} has an array '{name}' that is neither an input of the model "
                            f"({', '.join(inputs)}), one of its outputs, nor '{LABEL}'.")  # fmt: skip
    named = {i: _array(arrays, n, where) for i, n in enumerate(outputs) if n in arrays and n not in inputs}
    if LABEL in arrays and LABEL not in inputs and LABEL not in outputs:
        if not outputs:
            raise DataError(f"{where} has an array '{LABEL}', but the model has no output to compare it with.")
        named = {0: _array(arrays, LABEL, where), **named}
    chosen = tuple(sorted(named))
    inputs_read, targets = tuple(_array(arrays, n, where) for n in inputs), tuple(named[i] for i in chosen)
    axes = find_axes(inputs_read, specs, hints_of(model).sample_axes)
    _same_counts(inputs_read, axes, inputs, where)
    count = len(Batch(inputs_read, axes=axes))
    target_axes = list(find_axes(targets, [results[i] for i in chosen], (), count))
    if LABEL in arrays and 0 in chosen:
        target_axes[0] = 0 if targets[0].ndim else None
    for array, axis, number in zip(targets, target_axes, chosen, strict=True):
        if axis is not None and array.shape[axis] != count:
            name = LABEL if number == 0 and LABEL in arrays else outputs[number]
            raise DataError(f"{where}: the arrays hold different numbers of samples: '{name}' {array.shape[axis]}, "
                            f"the inputs {count}.")  # fmt: skip
    return Batch(inputs_read, targets, axes, tuple(target_axes)), chosen


def _same_counts(arrays: Sequence[Array], axes: Axes, names: Sequence[str], where: str) -> None:
    counts = {n: a.shape[i] for n, a, i in zip(names, arrays, axes, strict=True) if i is not None}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise DataError(f"{where}: the arrays hold different numbers of samples: {listed}. If another axis than the "
                        "first counts those of an input, say --sample-axis NAME:AXIS.")  # fmt: skip


def _array(arrays: Mapping[str, Any], name: str, where: str) -> Array:
    return to_array(arrays[name], f"{where}, '{name}'")


def to_array(values: Any, where: str) -> Array:
    """The values as an array of plain numbers or texts.

    Raises:
        DataError: They are ragged, or hold other objects.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where}: this is no array of numbers ({str(error).splitlines()[0].rstrip('. ')}).") from error
    if array.dtype == object and not all(isinstance(value, str) for value in array.flat):
        raise DataError(f"{where}: this is no array of numbers, but of {type(values).__name__} with mixed content.")
    return array


@reader(".txt, .jsonl", is_text)
def read_texts(reference: str, model: ir.Model, settings: DataSettings) -> Data:
    """Rows of tokens with all that the graph takes beside them; see `text`."""
    text = read_text(reference, model, settings)
    return Data(text.source, (0,) if text.has_targets else (), f"'{reference}'", text.metric, text.scores, text.batch)


@reader(".csv", is_table)
def read_csv(reference: str, model: ir.Model, settings: DataSettings) -> Data:
    """A table with a header: the target column, and the others as features in the order in which they stand.

    A model with one input [N, F] takes all the features; one with an input per column takes them by name. With a
    tokenizer, a table of pairs of sentences with scores is text.
    """
    if settings.tokenizer is not None and is_table_of_pairs(Path(reference)):
        return read_texts(reference, model, settings)
    header, rows = _table(reference)
    target = settings.target or header[-1]
    if target not in header:
        raise DataError(f"'{reference}' has no column '{target}'; it has {', '.join(header)}.")
    columns = {name: _numbers([row[i] for row in rows], name, reference) for i, name in enumerate(header)}
    label = columns.pop(target)
    if label.size and np.all(label == np.round(label)) and not any("." in row[header.index(target)] for row in rows):
        label = label.astype(np.int64)
    return Data(Arrays(_features(columns, input_specs(model), reference), (label,)), (0,), f"'{reference}'")


def _table(reference: str) -> tuple[list[str], list[list[str]]]:
    npz.require_file(Path(reference))
    try:
        with open(reference, newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file, delimiter="\t" if reference.lower().endswith(".tsv") else ",")
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(f"'{reference}' cannot be read as a table with a header: {error}.") from error
    rows = [row for row in rows if row]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"'{reference}', row {number}: {len(row)} fields where the header has {len(header)}.")
    if not rows:
        raise DataError(f"'{reference}' is empty: it has a header and no rows.")
    return header, rows


def _numbers(cells: Sequence[str], column: str, reference: str) -> Array:
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        bad = next(i for i, cell in enumerate(cells) if not _is_number(cell))
        raise DataError(f"'{reference}', row {bad + 2}, column '{column}': '{cells[bad]}' is no number; classes and "
                        "categories have to be written as numbers.") from None  # fmt: skip


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _features(columns: Mapping[str, Array], specs: Sequence[InputSpec], reference: str) -> tuple[Array, ...]:
    if all(spec.name in columns for spec in specs):
        return tuple(_typed(columns[spec.name][:, None], spec) for spec in specs)
    if len(specs) != 1:
        missing = next(spec.name for spec in specs if spec.name not in columns)
        raise DataError(f"'{reference}' has no column '{missing}', which the model takes as an input.")
    return (_typed(np.stack(list(columns.values()), axis=1), specs[0]),)


def _typed(column: Array, spec: InputSpec) -> Array:
    """Text has no types: whole numbers become integers where the model wants integers."""
    if spec.dtype is None:
        return column.astype(np.float32)
    if spec.dtype.kind in "iu" and np.any(column != np.round(column)):
        raise DataError(f"Input '{spec.name}' takes whole numbers, but the table holds fractions.")
    return column.astype(spec.dtype)


@reader("COCO's .json, a YOLO .yaml", has_labels)
def read_boxes(reference: str, model: ir.Model, settings: DataSettings) -> Data:
    """Pictures with labelled boxes; see `detection.labels`."""
    images, boxes = read_pictures(reference, _picture_input(model), settings)
    return Data(images, (), f"'{reference}'", "map", boxes=boxes)


def _picture_input(model: ir.Model) -> InputSpec:
    specs = input_specs(model)
    if len(specs) != 1:
        raise DataError(f"A folder of images feeds one input, but the model takes {len(specs)}.")
    return specs[0]


@reader("a folder of images", lambda name: Path(name).is_dir())
def read_images(reference: str, model: ir.Model, settings: DataSettings) -> Data:
    """Images in a sub-folder per class (numbered in alphabetical order), or unlabelled in the folder itself."""
    spec = _picture_input(model)
    files, labels = find_images(Path(reference))
    outputs = output_specs(model)
    classifies = bool(outputs) and outputs[0].shape is not None and len(outputs[0].shape) == 2
    images = ImageFolder.for_input(files, labels, spec, settings, "crop" if classifies else "stretch")
    return Data(images, () if labels is None else (0,), f"'{reference}'")


@reader("module:function", is_reference)
def read_function(reference: str, model: ir.Model, settings: DataSettings) -> Data:
    """A function that yields batches, called anew for each epoch: dicts by name, or (inputs, targets), or inputs."""
    function = next_within(settings.timeout, lambda: load_function(reference, "data source"), reference)
    stream = Stream(function, model, reference, settings.timeout, settings.samples)
    sample = next(stream.named(), None)
    if sample is None:
        raise DataError(f"The data set is empty: '{reference}' yields nothing.")
    return Data(stream, sample[1], f"'{reference}'")


@dataclass(frozen=True)
class Stream:
    """The batches that a user's function yields, in its own order and sizes.

    Attributes:
        function: Called anew for each epoch.
        model: What the batches are for.
        reference: The function's name, for messages.
        timeout: Seconds that it may take for one batch.
        samples: How many samples one pass takes at most; None for all of a function that ends.
    """

    function: Callable[[], Any]
    model: ir.Model
    reference: str
    timeout: float
    samples: int | None = None

    @property
    def count(self) -> int | None:
        return None

    def named(self) -> Iterator[tuple[Batch, tuple[int, ...]]]:
        """Each batch with the outputs that its targets belong to.

        Raises:
            DataError: The function fails, takes too long, or yields what is no batch.
        """
        where = f"A batch of '{self.reference}'"
        specs, results = input_specs(self.model), output_specs(self.model)
        for item in one_thread(self.function, self.timeout, self.reference):
            if isinstance(item, Mapping):
                yield by_name(item, self.model, where)
                continue
            fed, wanted = item if isinstance(item, tuple) and len(item) == 2 else (item, ())
            inputs, targets = _tuple(fed, where), _tuple(wanted, where)
            if len(inputs) != len(specs):
                names = ", ".join(f"'{spec.name}'" for spec in specs)
                raise DataError(f"{where} has {len(inputs)} inputs, but the model takes {len(specs)}: {names}.")
            outputs = tuple(range(len(targets)))
            if len(targets) > len(results):
                raise DataError(f"{where} has {len(targets)} targets, but the model has {len(results)} outputs.")
            axes = find_axes(inputs, specs, hints_of(self.model).sample_axes)
            yield Batch(inputs, targets, axes), outputs

    def epoch(self, batch_size: int, order: Array | None = None) -> Iterator[Batch]:
        return first_of((batch for batch, _ in self.named()), self.samples, self.reference)


def _tuple(arrays: Any, where: str) -> tuple[Array, ...]:
    if isinstance(arrays, (list, tuple)):
        return tuple(to_array(array, where) for array in arrays)
    return (to_array(arrays, where),)

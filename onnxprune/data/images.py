"""Images as batches: fitted into the model's input, scaled and normalised with Pillow and numpy, read when needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from onnxprune.data.fit import InputSpec
from onnxprune.data.sources import Array, Batch, batches_of
from onnxprune.errors import DataError
from onnxprune.recipe.training import DataSettings

Fit = Literal["stretch", "crop", "letterbox"]
_CROPPED = 0.875  # of the shorter side stays in the middle: 224 of 256, as the field has it
_PADDING = 114  # the grey around a letterboxed image, as YOLOs are trained with
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def find_images(folder: Path) -> tuple[list[Path], Array | None]:
    """The image files of `folder` and their class numbers (None where they lie in the folder itself, unlabelled).

    Classes are the sub-folders in alphabetical order, counted from 0.

    Raises:
        DataError: No images, or some inside and some outside of class folders.
    """
    loose = _images(folder)
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    numbered = [(path, number) for number, entry in enumerate(classes) for path in _images(entry)]
    if loose and numbered:
        raise DataError(f"'{folder}' holds images both inside and outside of class folders ('{loose[0].name}').")
    if not loose and not numbered:
        raise DataError(f"'{folder}' holds no images ({', '.join(sorted(SUFFIXES))}); the data set is empty.")
    if loose:
        return loose, None
    return [path for path, _ in numbered], np.array([number for _, number in numbered], dtype=np.int64)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)


@dataclass(frozen=True)
class Placement:
    """Where an image comes to lie in the model's input.

    Attributes:
        size: Width and height of the image once it is resized.
        left, top: Where its corner lies; below 0 what is cut off.
        scale: Factors on x and y.
    """

    size: tuple[int, int]
    left: int
    top: int
    scale: tuple[float, float]

    @classmethod
    def of(cls, width: int, height: int, into: tuple[int, int], fit: Fit) -> Placement:
        """Place an image in an input of (height, width).

        stretch changes both sides as needed. crop resizes until the input is .875 of the image's shorter side, and
        cuts out the middle; an image of the input's own size stays as it is. letterbox keeps the whole image and pads.
        """
        wide, high = into[1], into[0]
        if (width, height) == (wide, high) or fit == "stretch":
            return cls((wide, high), 0, 0, (wide / width, high / height))
        ratios = wide / width, high / height
        by = max(ratios) / _CROPPED if fit == "crop" else min(ratios)
        size = max(1, round(width * by)), max(1, round(height * by))
        left, top = round((wide - size[0]) / 2), round((high - size[1]) / 2)
        return cls(size, left, top, (size[0] / width, size[1] / height))

    def boxes(self, boxes: Array) -> Array:
        """Move boxes [..., 4] of left, top, right, bottom from the image's pixels to the input's."""
        corner = np.array([self.left, self.top, self.left, self.top])
        return np.asarray(boxes * np.array(self.scale * 2) + corner)


@dataclass(frozen=True)
class ImageFolder:
    """Image files as model inputs.

    Attributes:
        files: One per sample.
        labels: Class numbers [N], or None.
        layout: Axis order of the batches.
        channels: 1 (grey) or 3 (RGB).
        size: Height and width.
        mean, std: Per channel, [C].
        scale: Factor on the 0..255 values before mean and std.
        dtype: Type of the batches.
        fit: How an image of another size is fitted in; see `Placement`.
    """

    files: Sequence[Path]
    labels: Array | None
    layout: Literal["NCHW", "NHWC"]
    channels: int
    size: tuple[int, int]
    mean: Array
    std: Array
    scale: float
    dtype: np.dtype
    fit: Fit = "stretch"

    @classmethod
    def for_input(
        cls, files: Sequence[Path], labels: Array | None, spec: InputSpec, settings: DataSettings, fit: Fit = "stretch"
    ) -> ImageFolder:
        """Images as the model's input wants them; settings decide what its shape leaves open.

        Args:
            files, labels: The images, and their class numbers where there are some.
            spec: The input.
            settings: How images are read.
            fit: How images of other sizes are fitted in, where the settings do not say.

        Raises:
            DataError: The input is no image, or its size is known neither from the model nor from the settings.
        """
        if spec.shape is None or len(spec.shape) != 4:
            raise DataError(f"Input '{spec.name}' does not take images: it has not four axes.")
        channel, *rest = spec.shape[1:] if settings.layout == "NCHW" else (spec.shape[3], *spec.shape[1:3])
        channels = channel or (3 if len(settings.mean) == 3 else 1)
        if channels not in (1, 3):
            raise DataError(f"Input '{spec.name}' has {channels} channels in layout {settings.layout}; images have "
                            "1 or 3 (is the layout right?).")  # fmt: skip
        size = settings.size or (rest[0], rest[1])
        if size[0] is None or size[1] is None:
            raise DataError(f"The model leaves the image size of input '{spec.name}' open: set the size.")
        for name, values in (("mean", settings.mean), ("std", settings.std)):
            if len(values) not in (1, channels):
                raise DataError(f"{name} has {len(values)} values, but the images have {channels} channels.")
        raw = spec.dtype is not None and spec.dtype.kind in "iu"
        return cls(
            files,
            labels,
            settings.layout,
            channels,
            (size[0], size[1]),
            np.asarray(settings.mean, np.float32),
            np.asarray(settings.std, np.float32),
            1.0 if raw else settings.scale,
            spec.dtype or np.dtype(np.float32),
            settings.fit or fit,
        )

    @property
    def count(self) -> int:
        return len(self.files)

    def rows(self, indices: Array) -> Batch:
        pixels = np.stack([self.load(self.files[int(i)]) for i in indices])
        values = ((pixels * np.float32(self.scale) - self.mean) / self.std).astype(self.dtype)
        inputs = values if self.layout == "NHWC" else np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        return Batch((inputs,), () if self.labels is None else (self.labels[indices],))

    def epoch(self, batch_size: int, order: Array | None = None) -> Iterator[Batch]:
        return batches_of(self, batch_size, order)

    def load(self, path: Path) -> Array:
        """One image as float32 [H, W, C], 0..255.

        Raises:
            DataError: Pillow is missing, or cannot read the file.
        """
        try:
            from PIL import Image
        except ImportError as error:
            raise DataError("Folders of images need Pillow: pip install 'onnxprune[retrain]'.") from error
        try:
            with Image.open(path) as image:
                picture = image.convert("L" if self.channels == 1 else "RGB")
                place = Placement.of(*picture.size, self.size, self.fit)
                if picture.size != place.size:
                    picture = picture.resize(place.size, Image.Resampling.BILINEAR)
                if picture.size != (self.size[1], self.size[0]):
                    padding = _PADDING if self.channels == 1 else (_PADDING,) * self.channels
                    whole = Image.new(picture.mode, (self.size[1], self.size[0]), padding)
                    whole.paste(picture, (place.left, place.top))
                    picture = whole
                return np.asarray(picture, np.float32).reshape(*self.size, self.channels)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"'{path}' cannot be read as an image: {error}.") from error

"""What every test gets: one thread per process, the folder of real models, small graphs written as text."""

from __future__ import annotations

import os

# Before numpy, torch or ONNX Runtime start their threads: pytest-xdist gives each core a process already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from pathlib import Path

import pytest
from hypothesis import settings

# Generated cases take as long as an ONNX Runtime session takes, so no deadline; the same cases at every run.
settings.register_profile("onnxprune", deadline=None, derandomize=True)
settings.load_profile("onnxprune")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Figures that `onnxprune tune` measured on this machine change no test."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models (zoo/) and data, which is not part of the repository."""
    folder = Path(os.environ.get("ONNXPRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real models: {folder} does not exist (set ONNXPRUNE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def light_models() -> list[Path]:
    """The light_* models in the onnx wheel: whole architectures whose weights are ConstantOfShape nodes."""
    import onnx.backend.test

    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    return sorted(folder.glob("light_*.onnx"))

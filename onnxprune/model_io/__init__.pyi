from .hashing import sha256
from .limits import Limits
from .loading import load, load_any
from .saving import Saved, check_output, save, saved_size, size_of_files
from .scratch import scratch_file
from .serialise import all_initializers, serialized_size, to_bytes, to_bytes_within, to_proto, to_skeleton
from .source import Source, ensure_unchanged, source_of

__all__ = [
    "Limits",
    "Saved",
    "Source",
    "all_initializers",
    "check_output",
    "ensure_unchanged",
    "load",
    "load_any",
    "save",
    "saved_size",
    "scratch_file",
    "serialized_size",
    "size_of_files",
    "sha256",
    "source_of",
    "to_bytes",
    "to_bytes_within",
    "to_proto",
    "to_skeleton",
]

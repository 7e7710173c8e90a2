"""The command line. One command a file; every flag maps to a field of the Recipe or to where output goes."""

from onnxprune.cli.app import main

__all__ = ["main"]

"""PyTorch sources of the architectures in tests/zoo.py, one module a family. Importing them needs PyTorch."""

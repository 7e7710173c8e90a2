"""Samples from npz, folders, CSV and functions, what they must look like to fit a model, and metrics on them."""

"""Quantised operators: scales and zero points go with the channels they belong to."""

"""Attention as one operator: heads and head sizes of queries, keys and values."""

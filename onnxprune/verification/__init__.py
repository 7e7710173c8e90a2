"""The verdict: what was proved, on which inputs, and what could not be proved."""

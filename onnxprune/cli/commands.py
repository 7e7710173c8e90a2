"""The commands and what each is for: the page of all commands is shown from this, without a module of any of them."""

from __future__ import annotations

from collections.abc import Mapping

ABOUT: Mapping[str, str] = {
    "prune": "Prune a model (the command that runs when none is named).",
    "run": "Prune as a recipe file says.",
    "sweep": "Compare settings side by side: "
    "--sparsity 0.3,0.5 --structure channels,tiles --recover none,least-squares.",
    "inspect": "Show groups of units, what is prunable, and what is pinned and why.",
    "sensitivity": "Prune each layer alone to several levels and show what the model loses.",
    "methods": "List structures, criteria, allocations, schedules, recovery methods and metrics.",
    "verify": "Check a pruned model against its original and its record.",
    "compare": "Compare two models: outputs, size, multiply-adds, latency.",
    "unpack": "Give the plain model of one back that is packed or in tiles.",
    "tune": "Measure this machine once, in some seconds: choices for latency then go by it.",
}
"""By name, in the order in which they are shown."""

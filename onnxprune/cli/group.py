"""The group of commands: ``onnxprune MODEL`` prunes, and flags about printing may stand anywhere.

Both hold for shell completion as well, which reads the line through the same function.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

DEFAULT_COMMAND = "prune"
ANYWHERE = ("--quiet", "-q", "--verbose", "-v")
"""Flags of the group that may stand behind the command."""


class CommandGroup(TyperGroup):
    """Commands, one of which runs where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the line, with its command put in where it is left out."""
        end = args.index("--") if "--" in args else len(args)
        front = [a for a in args[:end] if a in ANYWHERE]
        rest = [a for a in args[:end] if a not in ANYWHERE] + args[end:]
        if rest and rest[0] not in self.commands and rest[0] not in self._options(ctx):
            rest.insert(0, DEFAULT_COMMAND)
        return super().parse_args(ctx, front + (rest or ["--help"]))

    def _options(self, ctx: Any) -> set[str]:
        """The flags of the group itself."""
        return {name for p in self.get_params(ctx) for name in (*p.opts, *p.secondary_opts) if name.startswith("-")}

"""What every command writes to: the console for people, plain JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

console = Console()
errors = Console(stderr=True)


def complain(message: str) -> None:
    """Write one sentence to standard error."""
    sentence = " ".join(message.split()).rstrip(".")
    errors.print(f"[bold red]onnxprune:[/] {escape(sentence)}", soft_wrap=True, highlight=False)


def print_json(command: str, content: Mapping[str, Any]) -> None:
    """Write JSON, and nothing else, to standard output; ``format`` names the command and the version of its layout."""
    versioned = {"format": f"onnxprune-{command}/1", **content}
    sys.stdout.write(json.dumps(versioned, indent=1, default=float) + "\n")


@contextmanager
def stages(title: str) -> Iterator[Callable[[str], None]]:
    """Show the stage that runs and for how long, on standard error and only on a terminal; gone at the end."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(title)
        yield lambda stage: progress.update(task, description=f"{title}: {stage}")

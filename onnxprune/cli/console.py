"""What every command writes to: the console for people, plain JSON for machines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from onnxprune.model_io import strict_json
from onnxprune.report.text import shown, visible


class SafeConsole(Console):
    """A console that no text can command, whoever prints it: what is not Rich's own is made visible."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, with control characters of texts as escapes."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text, keep="\n"), style, control)


console = SafeConsole()
errors = SafeConsole(stderr=True)


def complain(message: str) -> None:
    """Write one sentence to standard error."""
    sentence = " ".join(message.split()).rstrip(".")
    errors.print(f"[bold red]onnxprune:[/] {shown(sentence)}", soft_wrap=True, highlight=False)


def print_json(command: str, content: Mapping[str, Any]) -> None:
    """Write JSON, and nothing else, to standard output; ``format`` names the command and the version of its layout.

    Figures that are not finite are null, and a sentence in ``notes`` says which.
    """
    versioned = {"format": f"onnxprune-{command}/1", **content}
    text, lost = strict_json.dumps(versioned)
    if lost:
        note = f"not finite, so null here: {', '.join(lost[:20])}" + (" and more" if len(lost) > 20 else "")
        text, _ = strict_json.dumps({**versioned, "notes": [*versioned.get("notes", []), note]})
    sys.stdout.write(text + "\n")


@contextmanager
def stages(title: str) -> Iterator[Callable[[str], None]]:
    """Show the stage that runs and for how long, on standard error and only on a terminal; gone at the end."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        title = visible(title)
        task = progress.add_task(title)
        yield lambda stage: progress.update(task, description=f"{title}: {stage}")

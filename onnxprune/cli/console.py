"""What every command writes to: the console for people, plain JSON for machines."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from onnxprune.model_io import strict_json
from onnxprune.report.text import cut_middle, shown, visible


class SafeConsole(Console):
    """A console that no text can command, whoever prints it: what is not Rich's own is made visible."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, with control characters of texts as escapes."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text, keep="\n"), style, control)


console = SafeConsole()
errors = SafeConsole(stderr=True)
LOG = logging.getLogger("onnxprune")


class _Lines(logging.Handler):
    """Writes each record of the log as a line on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        errors.print(shown(line), style="dim", soft_wrap=True, highlight=False)


def set_volume(*, quiet: bool = False, verbose: bool = False) -> None:
    """Say how much is printed: nothing but errors and what was asked for as JSON, or the log as well."""
    console.quiet = quiet
    LOG.handlers = [handler for handler in LOG.handlers if not isinstance(handler, _Lines)]
    LOG.setLevel(logging.INFO if verbose else logging.NOTSET)
    if verbose:
        LOG.addHandler(_Lines())


@contextmanager
def warnings_logged() -> Iterator[None]:
    """Send what libraries warn of to the log, so that they stand on a terminal with ``--verbose`` only."""

    def log(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
        LOG.info("%s: %s", category.__name__, message)

    with warnings.catch_warnings():
        warnings.showwarning = log
        yield


def complain(message: str) -> None:
    """Write one sentence to standard error."""
    sentence = " ".join(message.split()).rstrip(".")
    errors.print(f"[bold red]onnxprune:[/] {shown(sentence)}", soft_wrap=True, highlight=False)


def print_json(command: str, content: Mapping[str, Any], version: int = 1) -> None:
    """Write JSON, and nothing else, to standard output; ``format`` names the command and the version of its layout.

    Figures that are not finite are null, and a sentence in ``notes`` says which.
    """
    versioned = {"format": f"onnxprune-{command}/{version}", **content}
    text, lost = strict_json.dumps(versioned)
    if lost:
        note = f"not finite, so null here: {', '.join(lost[:20])}" + (" and more" if len(lost) > 20 else "")
        text, _ = strict_json.dumps({**versioned, "notes": [*versioned.get("notes", []), note]})
    sys.stdout.write(text + "\n")


@contextmanager
def stages(title: str) -> Iterator[Callable[[str], None]]:
    """Show the stage that runs and for how long, on standard error and only on a terminal; gone at the end.

    The stage has the first right to the line, so that the figures of a training are seen on 80 columns. A bar stands
    behind a stage that tells how much of it is done; the title gets what is left.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), _Bar(), TimeElapsedColumn())
    hidden = console.quiet or not errors.is_terminal
    with Progress(*columns, console=errors, transient=True, disable=hidden) as progress:
        title = visible(title)
        task = progress.add_task(line_of_stage(title, "", errors.width))

        def tell(stage: str) -> None:
            done: float | None = getattr(stage, "done", None)  # of a runtime.countdown.Portion
            bar = 0 if done is None else min(_WIDEST_BAR, errors.width - _AROUND - len(stage) - 1)
            line = line_of_stage(title, visible(stage), errors.width - (bar + 1 if bar else 0))
            progress.update(task, description=line, completed=done or 0.0, total=1.0, bar=bar)

        yield tell


class _Bar(ProgressColumn):
    """A bar with the share in percent, of stages that tell how much of them is done."""

    def render(self, task: Task) -> Text:
        """Draw it as wide as the line has room; nothing where that is too little."""
        cells = task.fields.get("bar", 0) - len(" 100%")
        if cells < _NARROWEST_BAR:
            return Text()
        full = round(task.completed * cells)
        return Text(f"{'━' * full}{'─' * (cells - full)} {task.completed:4.0%}", no_wrap=True)


_WIDEST_BAR, _NARROWEST_BAR = 25, 4
_AROUND = 11
"""Columns of the spinner, of the time, and of the spaces between."""


def line_of_stage(title: str, stage: str, width: int) -> str:
    """Return one line for a title and a stage, the title shortened to what the stage leaves of the width."""
    room = width - _AROUND - len(stage) - 2
    name = cut_middle(title, room) if room >= _LEAST_TITLE else ""
    return f"{name}: {stage}" if name and stage else name or stage


_LEAST_TITLE = 8

"""What a notebook shows of a result: one sentence, a table, notes. Names come from files, so all text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

MOST_ROWS = 20
"""Rows that a table shows; it says how many there are beyond."""


def in_notebook(
    title: str, heads: Sequence[str] = (), rows: Sequence[Sequence[object]] = (), notes: Iterable[str] = ()
) -> str:
    """Return HTML; numbers stand to the right.

    >>> in_notebook("one <layer>")
    '<p><b>one &lt;layer&gt;</b></p>'
    """
    parts = [f"<p><b>{html.escape(title)}</b></p>"]
    if rows:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:MOST_ROWS])
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    if len(rows) > MOST_ROWS:
        parts.append(f"<p>{len(rows) - MOST_ROWS} more rows</p>")
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    return "".join(parts)


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"<td style='text-align: left'>{html.escape(str(value))}</td>"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f"<td style='text-align: right'>{text}</td>"

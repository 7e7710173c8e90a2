"""A user's function that yields batches, run in a thread of its own: it may hang or fail, and the run ends in words.

All of one epoch runs in one thread, since some readers (databases, for one) belong to the thread that opened them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from onnxprune.data.sources import Batch
from onnxprune.errors import DataError, OnnxPruneError
from onnxprune.plugins import failure

T = TypeVar("T")

_END = object()
_MOST = 5_000_000
"""Samples after which a function counts as one that never ends; ImageNet has 1.3 million pictures."""


class _Worker:
    """A daemon thread that does one thing after another; one that hangs does not keep the process alive."""

    def __init__(self, reference: str, timeout: float) -> None:
        self.reference, self.timeout = reference, timeout
        self.jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                self.results.put((job(), None))
            except BaseException as error:
                self.results.put((None, error))

    def do(self, job: Callable[[], T]) -> T:
        """Do a job in the thread and wait for what it gives.

        Raises:
            DataError: It takes longer than the limit, or fails.
        """
        self.jobs.put(job)
        try:
            result, error = self.results.get(timeout=self.timeout)
        except queue.Empty:
            raise DataError(
                f"'{self.reference}' gave no batch within {self.timeout:g} seconds: if it needs longer, say so with "
                "--data-timeout SECONDS."
            ) from None
        if isinstance(error, OnnxPruneError):
            raise error
        if error is not None:
            raise DataError(f"'{self.reference}' failed with {failure(error)}.") from error
        return result

    def stop(self) -> None:
        """Let the thread end after what it is doing."""
        self.jobs.put(None)


def next_within(timeout: float, job: Callable[[], T], reference: str) -> T:
    """Return what a job gives within so many seconds.

    Raises:
        DataError: It takes longer, or fails.
    """
    worker = _Worker(reference, timeout)
    try:
        return worker.do(job)
    finally:
        worker.stop()


def one_thread(function: Callable[[], Any], timeout: float, reference: str) -> Iterator[Any]:
    """Yield what a user's function yields; each item has to come within the limit.

    Raises:
        DataError: One takes longer, or the function fails, stops the program, or gives nothing to go through.
    """
    worker = _Worker(reference, timeout)
    try:
        items = worker.do(lambda: iter(function()))
        while (item := worker.do(lambda: next(items, _END))) is not _END:
            yield item
    finally:
        worker.stop()


def first_of(batches: Iterator[Batch], samples: int | None, reference: str) -> Iterator[Batch]:
    """Yield batches of at most so many samples; the last one is cut.

    Args:
        batches: What a user's function yields.
        samples: How many samples are wanted; None for all.
        reference: The function's name, for the message.

    Raises:
        DataError: All are wanted, and there are more than five million.
    """
    count = 0
    for batch in batches:
        left = (_MOST if samples is None else samples) - count
        if samples is None and len(batch) > left:
            raise DataError(
                f"'{reference}' has given {_MOST:,} samples and has not ended: say with --data-samples N how many to "
                "read in one pass."
            )
        yield batch if len(batch) <= left else batch.rows(np.arange(left))
        count += len(batch)
        if samples is not None and count >= samples:
            return

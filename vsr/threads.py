"""All threading of the pipeline: one generator that runs another in its own thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class _Raised:
    """An exception on its way from the thread to the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def in_thread(iterable: Iterable[T], *, depth: int, name: str) -> Generator[T, None, None]:
    """Run an iterable in a thread of its own, at most `depth` items ahead of the consumer.

    At most `depth` + 2 items exist at a time: those queued, one being made, one being consumed. An
    exception of the iterable is raised again at the consumer, after the items that came before it.
    Closing this generator early stops the thread and closes the iterable, in that thread, before
    `close` returns.

    Args:
        iterable: consumed and closed in the thread; the thread starts with the first `next`.
        depth: length of the queue, at least 1.
        name: of the thread, for debuggers and logs.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return _in_thread(iterable, depth, name)


def _in_thread(iterable: Iterable[T], depth: int, name: str) -> Generator[T, None, None]:
    items: queue.Queue[object] = queue.Queue(depth)
    closed = threading.Event()

    def produce() -> None:
        last: object = _END
        try:
            for item in iterable:
                items.put(item)
                if closed.is_set():
                    break
        except BaseException as error:  # carried to the consumer, which raises it
            last = _Raised(error)
        finally:
            try:
                if closed.is_set() and hasattr(iterable, "close"):
                    iterable.close()
            except BaseException as error:
                last = _Raised(error)
            items.put(last)

    thread = threading.Thread(target=produce, name=name, daemon=True)
    thread.start()
    try:
        while True:
            item = items.get()
            if item is _END:
                return
            if isinstance(item, _Raised):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        while thread.is_alive():  # make room, so that the thread sees `closed`
            with suppress(queue.Empty):
                items.get(timeout=0.05)
        thread.join()

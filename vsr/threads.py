"""All threading of the pipeline: one generator that runs another in its own thread.

And what it costs: a `Meter` tells for how long a thread was at work, its waits left out.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")


class _Waited(threading.local):
    """How long this thread has waited for others, in all."""

    seconds = 0.0


_waited = _Waited()


@contextmanager
def waiting() -> Iterator[None]:
    """Mark the time that a thread waits for another: no `Meter` counts it as work."""
    began = perf_counter()
    try:
        yield
    finally:
        _waited.seconds += perf_counter() - began


class Meter:
    """How busy a stage is. Written by one thread, read by any.

    Attributes:
        busy_seconds: spent at work, so far; what a GPU computes counts where it is waited for.
        queued: items that it has made and nobody has taken yet.
    """

    def __init__(self) -> None:
        self.busy_seconds = 0.0
        self._items: queue.Queue[object] | None = None

    @property
    def queued(self) -> int:
        return 0 if self._items is None else self._items.qsize()

    def watch(self, items: queue.Queue[object]) -> None:
        """Take note of the queue that the stage puts its items in."""
        self._items = items

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time inside, apart from that in `waiting`."""
        began, waited = perf_counter(), _waited.seconds
        try:
            yield
        finally:
            self.busy_seconds += perf_counter() - began - (_waited.seconds - waited)


class _Raised:
    """An exception on its way from the thread to the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def in_thread(
    iterable: Iterable[T],
    *,
    depth: int,
    name: str,
    meter: Meter | None = None,
    wake: Callable[[], None] | None = None,
) -> Generator[T, None, None]:
    """Run an iterable in a thread of its own, at most `depth` items ahead of the consumer.

    At most `depth` + 2 items exist at a time: those queued, one being made, one being consumed. An
    exception of the iterable is raised again at the consumer, after the items that came before it.
    Closing this generator early stops the thread and closes the iterable, in that thread, before
    `close` returns.

    Args:
        iterable: consumed and closed in the thread; the thread starts with the first `next`.
        depth: length of the queue, at least 1.
        name: of the thread, for debuggers and logs.
        meter: told what the iterable costs and how many of its items wait.
        wake: called where this generator ends before the iterable does, before the thread is waited
            for: ends what the iterable may itself be waiting for.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return _in_thread(iterable, depth, name, meter or Meter(), wake or (lambda: None))


def _in_thread(
    iterable: Iterable[T], depth: int, name: str, meter: Meter, wake: Callable[[], None]
) -> Generator[T, None, None]:
    items: queue.Queue[object] = queue.Queue(depth)
    meter.watch(items)
    closed = threading.Event()

    def produce() -> None:
        last: object = _END
        try:
            for item in _metered(iterable, meter):
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
    item: object = None
    try:
        while True:
            with waiting():
                item = items.get()
            if item is _END:
                return
            if isinstance(item, _Raised):
                raise item.error
            yield item  # type: ignore[misc]
    except BaseException:
        closed.set()
        if not isinstance(item, _Raised):  # after which nothing waits, and what is begun may end
            wake()
        raise
    finally:
        closed.set()
        while thread.is_alive():  # make room, so that the thread sees `closed`
            with suppress(queue.Empty):
                items.get(timeout=0.05)
        thread.join()


def _metered(iterable: Iterable[T], meter: Meter) -> Iterator[T]:
    """Yield the items of an iterable, and count the time that each takes."""
    iterator = iter(iterable)
    while True:
        with meter.working():
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item

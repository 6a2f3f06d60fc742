from __future__ import annotations

import threading
import time

import pytest

from vsr.threads import Meter, in_thread


def test_items_arrive_in_order_and_from_another_thread():
    made_in = []

    def numbers():
        for number in range(50):
            made_in.append(threading.current_thread().name)
            yield number

    assert list(in_thread(numbers(), depth=3, name="maker")) == list(range(50))
    assert set(made_in) == {"maker"}


def test_the_thread_runs_at_most_depth_ahead():
    made = []

    def numbers():
        for number in range(100):
            made.append(number)
            yield number

    items = in_thread(numbers(), depth=4, name="maker")
    for taken in range(10):
        next(items)
        time.sleep(0.01)  # time for the thread to run ahead as far as it may
        assert len(made) <= taken + 1 + 4 + 1  # taken, queued, in the making
    items.close()


def test_stages_overlap():
    """Nobody goes on before three stages are at work at once, each on an item of its own."""
    together = threading.Barrier(3)

    def meeting(items, at):
        for item in items:
            if item == at:
                together.wait(timeout=30)
            yield item

    stage = in_thread(meeting(range(20), 2), depth=2, name="one")
    stage = in_thread(meeting(stage, 1), depth=2, name="two")
    assert list(meeting(stage, 0)) == list(range(20))


def test_an_exception_comes_after_the_items_before_it():
    def failing():
        yield 1
        yield 2
        raise OSError("broken")

    items = in_thread(failing(), depth=2, name="maker")
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="broken"):
        next(items)
    assert not any(thread.name == "maker" for thread in threading.enumerate())


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_early_closes_the_source_and_ends_the_thread(taken):
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    items = in_thread(in_thread(endless(), depth=2, name="inner"), depth=2, name="outer")
    for _ in range(taken):
        next(items)
    items.close()
    assert closed == ["inner"]
    assert not any(thread.name in ("inner", "outer") for thread in threading.enumerate())


def test_a_source_that_never_yields_ends():
    assert list(in_thread(iter(()), depth=1, name="maker")) == []


def test_a_depth_below_one_is_refused_at_once():
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        in_thread([1], depth=0, name="maker")


# --- meters ---------------------------------------------------------------------------------------


def test_a_meter_counts_work_and_no_waiting():
    def slow(items, seconds):
        for item in items:
            time.sleep(seconds)
            yield item

    busy, quick, taker = Meter(), Meter(), Meter()
    stage = in_thread(slow(range(10), 0.02), depth=2, name="busy", meter=busy)
    stage = in_thread(slow(stage, 0), depth=2, name="quick", meter=quick)
    with taker.working():
        assert list(stage) == list(range(10))
    assert busy.busy_seconds >= 0.2
    assert quick.busy_seconds < busy.busy_seconds / 2  # it waits for the busy one
    assert taker.busy_seconds < busy.busy_seconds / 2


def test_a_meter_tells_how_many_items_wait():
    meter = Meter()
    assert meter.queued == 0
    items = in_thread(range(10), depth=3, name="maker", meter=meter)
    next(items)
    until = time.monotonic() + 10
    while meter.queued < 3 and time.monotonic() < until:
        time.sleep(0.001)
    assert meter.queued == 3
    items.close()


def test_what_an_iterable_waits_for_is_ended_before_its_thread_is():
    wanted = threading.Event()

    def waiting():
        yield 1
        assert wanted.wait(30)
        yield 2

    items = in_thread(waiting(), depth=1, name="maker", wake=wanted.set)
    assert next(items) == 1
    began = time.monotonic()
    items.close()
    assert time.monotonic() - began < 10
    wanted.clear()
    assert list(in_thread([1, 2], depth=1, name="maker", wake=wanted.set)) == [1, 2]
    assert not wanted.is_set()


def test_an_iterable_that_has_failed_is_not_woken():
    """Waking cancels what an engine has begun, whose end would come before the true reason."""

    def failing():
        yield 1
        raise OSError("broken")

    woken = threading.Event()
    items = in_thread(failing(), depth=1, name="maker", wake=woken.set)
    assert next(items) == 1
    with pytest.raises(OSError, match="broken"):
        next(items)
    assert not woken.is_set()

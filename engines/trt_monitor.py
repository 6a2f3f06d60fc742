"""How far a build of TensorRT is, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, Thread
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_LISTEN_SECONDS = 0.1  # Windows hears Ctrl-C between two waits only


def in_background(work: Callable[[], T], *, cancel: Callable[[BaseException], None]) -> T:
    """Run in another thread, so that an interruption reaches this one, and `cancel`, at once."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    results: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            if device is not None:  # each thread has a current one of its own
                torch.cuda.set_device(device)
            results.append(work())
        except BaseException as error:
            raised.append(error)

    thread = Thread(target=run, name="tensorrt-build", daemon=True)
    try:
        thread.start()  # waits too, and may be interrupted while the work has begun
        while thread.is_alive():
            thread.join(_LISTEN_SECONDS)
    except BaseException as error:
        cancel(error)
        if thread.ident is not None:
            thread.join()
        raise
    if raised:
        raise raised[0]
    return results[0]


class _Phase:
    """One phase of a build; each step of it may hold further phases."""

    def __init__(self, parent: _Phase | None, steps: int) -> None:
        self.steps, self.done, self.inner = max(steps, 1), 0, 0.0
        self.parent = parent

    def report(self) -> float:
        """Pass the share that is done up to the outermost phase, and return that phase's."""
        share = min((self.done + self.inner) / self.steps, 1.0)
        if self.parent is None:
            return share
        self.parent.inner = max(share, self.parent.inner)
        return self.parent.report()


def make_monitor(module: Any, progress: Callable[[float], None]) -> Any:
    """Make the library's progress monitor; a class of its own is only possible once it is imported.

    Args:
        module: the library.
        progress: called with the share that is done, rising to 1, from any thread; what it raises
            stops the build, and is in `raised` then.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.raised: BaseException | None = None
            self._phases: dict[str, _Phase] = {}
            self._share = 0.0
            self._lock = Lock()  # TensorRT reports from its own threads too

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                above = self._phases.get(parent) if parent is not None else None
                self._phases[name] = _Phase(above, steps)

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                phase = self._phases[name]
                phase.done, phase.inner = step + 1, 0.0
                self._tell(phase.report())
                return self.raised is None

        def phase_finish(self, name: str) -> None:
            with self._lock:
                phase = self._phases.pop(name)
                if phase.parent is None:
                    self._tell(1.0)

        def cancel(self, reason: BaseException) -> None:
            self.raised = self.raised or reason

        def _tell(self, share: float) -> None:
            if self.raised is not None or share <= self._share:
                return
            self._share = share
            try:
                progress(share)
            except BaseException as error:  # must not cross C++; the build stops and it is raised
                self.raised = error

    return Monitor()

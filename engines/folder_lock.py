"""The lock of a folder: one run at a time builds in it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05


def wait_for_lock(handle: int, folder: Path, waiting: Callable[[], None]) -> None:
    """Lock an open file until it is closed or the process dies.

    Args:
        handle: of the file.
        folder: what it stands for, for the log.
        waiting: called again and again while another run has it; what it raises ends the wait.
    """
    told = False
    while True:
        try:
            if sys.platform == "win32":
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if not told:
                log.warning("waiting for another run that is building an engine in %s", folder)
            told = True
            waiting()
            time.sleep(_POLL_SECONDS)
        except OSError as error:  # some network file systems cannot: a build too many is no harm
            log.warning("cannot lock %s: %s", folder, error.strerror)
            return
        else:
            return

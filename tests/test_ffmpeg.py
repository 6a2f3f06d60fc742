from __future__ import annotations

import gc
import threading

import av
import av.logging
import pytest
from av.error import FFmpegError

from vsr.ffmpeg import log_lines, reason

PATIENCE_SECONDS = 20


def test_an_error_carries_what_ffmpeg_says_of_it(tmp_path):
    (tmp_path / "a.mp4").write_bytes(bytes(100))
    with log_lines(av.logging.ERROR), pytest.raises(FFmpegError) as raised:
        av.open(str(tmp_path / "a.mp4"))
    assert "moov" in reason(raised.value)
    with pytest.raises(FFmpegError) as raised:
        av.open(str(tmp_path / "a.mp4"))
    assert "moov" not in reason(raised.value)


def test_who_listens_at_once_takes_turns_and_leaves_the_log_as_it_was():
    entered, leave = threading.Event(), threading.Event()

    def listen() -> None:
        with log_lines(av.logging.INFO):
            entered.set()
            leave.wait(PATIENCE_SECONDS)

    other = threading.Thread(target=listen)
    with log_lines(av.logging.ERROR):
        other.start()
        assert not entered.wait(0.2)
        assert av.logging.get_level() == av.logging.ERROR
        assert not gc.isenabled()  # what is freed by chance may be a decoder that is logging
    assert entered.wait(PATIENCE_SECONDS)
    leave.set()
    other.join(PATIENCE_SECONDS)
    assert av.logging.get_level() is None
    assert gc.isenabled()

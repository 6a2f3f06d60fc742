"""Live streams: the newest frames, broken connections and whole files, on 127.0.0.1 only."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import pytest
from media import probe
from streaming import (
    PACKET_BYTES,
    WAIT_SECONDS,
    HlsServer,
    RtspServer,
    TcpServer,
    write_ts,
)

import vsr
from engines.errors import MediaError
from vsr.cli import main
from vsr.connection import Stopped, connections
from vsr.kept_engine import KeptEngine
from vsr.latest import LatestFrames
from vsr.liveclock import LiveClock, Pace
from vsr.recording import Recording

ROOT = Path(__file__).parents[1]
record = partial(vsr.upscale, live=True, backend="pytorch", preset="ultrafast")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    """Let a read that gives nothing take no longer than a test may."""
    monkeypatch.setattr("vsr.connection.READ_SECONDS", 0.5)
    monkeypatch.setattr("vsr.connection.OPEN_SECONDS", 5.0)


# --- the newest frames ----------------------------------------------------------------------------


def latest(depth: int) -> LatestFrames[int]:
    return LatestFrames(depth, threading.Event())


@pytest.mark.parametrize("depth", [1, 4])
def test_of_more_than_depth_the_oldest_waiting_is_dropped(depth):
    frames = latest(depth)
    for number in range(10):
        frames.put(number)
    frames.close()
    taken = []
    for number in frames:
        taken.append(number)
        frames.done()
    assert taken == list(range(10))[-depth:]
    assert frames.dropped == 10 - depth


@pytest.mark.parametrize("depth", [1, 2, 4, 7])
def test_never_are_more_than_depth_waiting_or_at_work(depth):
    frames = latest(depth)
    source, held, received = iter(frames), [], 0
    for step in range(60):
        if step % 7 != 3 and step < 50:
            frames.put(received)
            received += 1
        if step == 50:
            frames.close()
        if step % 3 == 0 and held:
            held.pop(0)
            frames.done()
        can_take = frames._waiting and len(held) < max(1, depth - 1)
        if can_take:
            held.append(next(source))
            assert held == sorted(set(held))
        assert len(held) + len(frames._waiting) <= depth


def test_a_slow_consumer_goes_on_with_a_new_frame():
    frames = latest(4)
    source = iter(frames)
    taken = []
    for number in range(100):
        frames.put(number)
        if number % 10 == 9:  # ten times too slow
            taken.append(next(source))
            frames.done()
    assert taken == [6, 16, 26, 36, 46, 56, 66, 76, 86, 96]


def test_an_error_comes_after_the_frames_before_it():
    frames = latest(4)
    frames.put(1)
    frames.close(OSError("broken"))
    source = iter(frames)
    assert next(source) == 1
    frames.done()
    with pytest.raises(OSError, match="broken"):
        next(source)


@pytest.mark.parametrize("how", ["stop", "end"])
def test_a_consumer_that_waits_is_let_go(how):
    stop = threading.Event()
    frames: LatestFrames[int] = LatestFrames(2, stop)
    frames.put(1)
    source = iter(frames)
    next(source)
    frames.put(2)  # waits: the first one is never done
    ended = []
    thread = threading.Thread(target=lambda: ended.extend(source), daemon=True)
    thread.start()
    stop.set() if how == "stop" else frames.end()
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    assert ended == []
    assert frames.dropped == 1


# --- broken connections, with a clock of their own ------------------------------------------------


class Simulation:
    """A stream whose connections fail as told, and a clock that nothing but pauses moves."""

    def __init__(self, *fates: str, connect_seconds: float = 0.0) -> None:
        self.now, self.pauses, self.limits, self.closed = 100.0, [], [], []
        self._fates, self._connect_seconds = iter(fates), connect_seconds
        self._numbers = itertools.count()
        self.stopped = False

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now += seconds
        return self.stopped

    def connect(self, seconds: float) -> Simulation.Connection:
        self.limits.append(seconds)
        self.now += self._connect_seconds
        match next(self._fates, "refused"):
            case "refused":
                raise MediaError("connection refused")
            case "stopped":
                raise Stopped("ended")
            case "bug":
                raise RuntimeError("bug")
            case "answers shortly":
                return self.Connection(self, 1.0)
        return self.Connection(self)

    class Connection:
        def __init__(self, simulation: Simulation, brought_seconds: float = 60.0) -> None:
            self.brought_seconds = brought_seconds
            self.number = next(simulation._numbers)
            self._simulation = simulation

        def close(self) -> None:
            self._simulation.closed.append(self.number)

    def run(self, give_up_seconds: float = 10.0) -> list[int]:
        return [
            connection.number
            for connection in connections(
                self.Connection(self), self.connect, give_up_seconds=give_up_seconds,
                clock=self.clock, pause=self.pause,
            )
        ]  # fmt: skip


def test_pauses_grow_until_it_gives_up():
    stream = Simulation()
    assert stream.run() == [0]
    assert stream.pauses == [0.25, 0.5, 1, 2, 4, 2.25]
    assert stream.now == 110
    assert stream.closed == [0]


def test_a_connection_that_comes_back_is_gone_on_with():
    stream = Simulation("refused", "refused", "answers", "answers")
    assert stream.run() == [0, 1, 2]
    assert stream.pauses[:4] == [0.25, 0.5, 1, 0.25]  # patient anew with each
    assert stream.closed == [0, 1, 2]


def test_connections_that_bring_next_to_nothing_do_not_make_it_patient_anew():
    stream = Simulation(*["answers shortly"] * 50)
    assert stream.run() == [0, 1, 2, 3, 4, 5, 6]
    assert stream.pauses == [0.25, 0.5, 1, 2, 4, 2.25]
    assert stream.now == 110
    assert stream.closed == [0, 1, 2, 3, 4, 5, 6]


def test_after_short_ones_a_lasting_connection_makes_it_patient_anew():
    stream = Simulation("answers shortly", "answers shortly", "answers")
    assert stream.run() == [0, 1, 2, 3]
    assert stream.pauses == [0.25, 0.5, 1, 0.25, 0.5, 1, 2, 4, 2.25]


def test_slow_attempts_count_and_know_what_is_left():
    stream = Simulation(connect_seconds=4)
    assert stream.run() == [0]
    assert stream.pauses == [0.25, 0.5, 1]
    assert stream.limits == [9.75, 5.25, 1]


def test_without_patience_the_first_end_is_the_last():
    stream = Simulation("answers")
    assert stream.run(give_up_seconds=0) == [0]
    assert (stream.pauses, stream.limits) == ([], [])


def test_a_stop_ends_a_pause_and_an_attempt():
    stream = Simulation("stopped", "answers")
    assert stream.run() == [0]
    assert stream.pauses == [0.25]
    stream = Simulation("answers")
    stream.stopped = True
    assert stream.run() == [0]
    assert stream.limits == []


def test_a_bug_is_no_broken_connection():
    with pytest.raises(RuntimeError, match="bug"):
        Simulation("bug").run()


# --- one time line --------------------------------------------------------------------------------


def place(connections_seen: list[tuple[float, list[float]]]) -> list[float]:
    """Place frames; a connection is the wall's time at its first frame and all frames' times."""
    now = 0.0
    line = LiveClock(Fraction(1, 1000), lambda: now)
    placed = []
    for began, times in connections_seen:
        now = began
        line.connected(Fraction(times[0]).limit_denominator(1000))
        for at in times:
            now = began + at - times[0]
            placed.append(line.place(Fraction(at).limit_denominator(1000)) / 1000)
    return placed


def test_the_recording_begins_at_0_and_keeps_the_streams_steps():
    assert place([(50, [1000, 1000.04, 1000.2])]) == [0, 0.04, 0.2]


def test_where_the_streams_clock_goes_on_so_does_the_recordings():
    assert place([(50, [7, 8]), (54, [11.5, 12])]) == [0, 1, 4.5, 5]


@pytest.mark.parametrize("again", [0, 7, 8, 5000])
def test_where_it_begins_anew_as_much_time_is_left_as_has_passed(again):
    assert place([(50, [7, 8]), (54, [again, again + 1])]) == [0, 1, 4, 5]


def test_a_burst_is_spread_over_its_time():
    now = 100.0
    pace = Pace(lambda: now)
    held = []
    for at in (7.0, 7.5, 8.0):  # all at once
        held.append(pace.early_seconds(at))
        now += held[-1]
    assert held == [0, 0.5, 0.5]
    now += 3  # the next ones are late: they wait for nothing, but for each other
    held = []
    for at in (8.5, 9.0):
        held.append(pace.early_seconds(at))
        now += held[-1]
    assert held == [0, 0.5]
    assert pace.early_seconds(5000) == 0  # a jump is not waited for
    assert pace.early_seconds(5000.5) == 0.5


def test_frames_at_the_same_tick_are_kept_apart():
    assert place([(50, [7, 7.0001, 7.0002, 8])]) == [0, 0.001, 0.002, 1]


# --- whole recordings -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> bytes:
    """A second of picture and sound, whose clock begins at 1000 s."""
    folder = tmp_path_factory.mktemp("ts")
    return write_ts(folder / "a.ts").read_bytes()


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_picture_and_sound_are_recorded_over_a_broken_connection(
    suffix, stream, tiny_weights, tmp_path, caplog
):
    output = tmp_path / f"out{suffix}"
    stop = threading.Event()
    with TcpServer(stream, stream) as server:
        result = record(
            server.url, output, model=tiny_weights, live_depth=50, stop=stop,
            progress=lambda progress: progress.frames == 50 and stop.set(),
        )  # fmt: skip
    after = probe(output)
    assert result.frames == len(after.pts_seconds) == 50
    assert (result.dropped, result.reconnects) == (0, 1)
    assert str(result.input) == server.url
    assert after.size == (76, 100)
    steps = [b - a for a, b in itertools.pairwise(after.pts_seconds)]
    assert after.pts_seconds[0] < 0.1
    assert all(abs(step - Fraction(1, 25)) <= Fraction(1, 1000) for step in steps[:24] + steps[25:])
    assert 0.04 <= steps[24] < WAIT_SECONDS  # what has passed meanwhile
    sound = after.packets["audio"][0]
    assert 80 < len(sound) <= 96
    assert sound == sorted(set(sound))
    # both begin and end together, before the break and after it
    assert abs(sound[-1] - after.pts_seconds[-1]) < 0.1
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert "broke off" in caplog.text
    assert "connected again" in caplog.text


def test_what_is_another_after_the_break_becomes_what_it_was(
    stream, tiny_weights, tmp_path, caplog
):
    other = write_ts(tmp_path / "b.ts", size=(76, 100), has_sound=False).read_bytes()
    stop = threading.Event()
    with TcpServer(stream, other) as server:
        result = record(
            server.url, tmp_path / "out.mkv", model=tiny_weights, live_depth=50, stop=stop,
            region=vsr.Crop(10, 8, 32, 24),
            progress=lambda progress: progress.frames == 50 and stop.set(),
        )  # fmt: skip
    assert (result.frames, result.reconnects, result.output_size) == (50, 1, (48, 64))
    with av.open(str(tmp_path / "out.mkv")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    # a gradient that moves little: the same part is seen before and after
    difference = frames[24].astype(int) - frames[25].astype(int)
    assert abs(difference).mean() < 30
    assert 40 < len(probe(tmp_path / "out.mkv").packets["audio"][0]) < 50
    assert "its sound has changed" in caplog.text


def test_frames_that_come_too_fast_are_dropped_and_counted(stream, tiny_weights, tmp_path, caplog):
    seen = []

    def slow(progress):
        seen.append(progress)
        time.sleep(0.05)

    with TcpServer(stream, seconds=0.5) as server:
        result = record(
            server.url, tmp_path / "out.mkv", model=tiny_weights, reconnect_seconds=0,
            live_depth=2, progress=slow,
        )  # fmt: skip
    assert result.dropped > 0
    assert result.frames + result.dropped == 25
    assert len(probe(tmp_path / "out.mkv").pts_seconds) == result.frames
    assert f"{result.dropped} frames of {server.url} came too fast" in caplog.text
    assert seen[-1].dropped == result.dropped
    assert seen[-1].total is None


def test_udp_is_received(stream, tiny_weights, tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probed:
        probed.bind(("127.0.0.1", 0))
        port = probed.getsockname()[1]
    sent = threading.Event()

    def send():  # over and over: what comes before the receiver is there is lost
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            until = time.monotonic() + WAIT_SECONDS
            while not sent.is_set() and time.monotonic() < until:
                for at in range(0, len(stream), PACKET_BYTES):
                    sender.sendto(stream[at : at + PACKET_BYTES], ("127.0.0.1", port))
                    if sent.wait(0.004):
                        return

    stop = threading.Event()
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        result = record(
            f"udp://127.0.0.1:{port}", tmp_path / "out.mkv", model=tiny_weights, stop=stop,
            progress=lambda progress: progress.frames >= 10 and stop.set(),
        )  # fmt: skip
    finally:
        sent.set()
        thread.join(5)
    assert not thread.is_alive()
    assert len(probe(tmp_path / "out.mkv").pts_seconds) == result.frames >= 10


HTTP = b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n%s\r\n"


def test_http_is_received_with_its_password(stream, tiny_weights, tmp_path):
    refusal = b"HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\n\r\n"
    with TcpServer(refusal, HTTP % b"" + stream, hears=True) as server:
        url = f"http://admin:geheim@127.0.0.1:{server.port}/live.ts?token=geheim"
        result = record(
            url, tmp_path / "out.mkv", model=tiny_weights, live_depth=50, reconnect_seconds=0
        )
    assert result.frames == 25
    assert server.requests[0].startswith(b"GET /live.ts?token=geheim ")
    assert b"Authorization: Basic YWRtaW46Z2VoZWlt" in server.requests[1]
    assert str(result.input) == f"http://***@127.0.0.1:{server.port}/live.ts?***"


def lengthened(clip: bytes, length: int | None = None) -> bytes:
    """Put HTTP's header with a length, by default the true one, before a clip."""
    return HTTP % b"Content-Length: %d\r\n" % (length or len(clip)) + clip


def warnings(caplog) -> list[str]:
    return [record.message for record in caplog.records if "too fast" not in record.message]


def test_a_file_that_says_its_length_is_recorded_once(stream, tiny_weights, tmp_path, caplog):
    answer = lengthened(stream)
    with TcpServer(*[answer] * 5, hears=True) as server:
        result = record(
            f"http://127.0.0.1:{server.port}/a.ts", tmp_path / "out.mkv", model=tiny_weights,
            live_depth=50,
        )  # fmt: skip
    assert (result.frames, result.reconnects) == (25, 0)
    (said,) = warnings(caplog)
    assert "it is a file, which has ended" in said


@pytest.mark.parametrize("kind", ["says no length", "breaks off"])
def test_a_file_that_starts_anew_is_recorded_once(
    kind, stream, tiny_weights, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("vsr.connection._LASTING_SECONDS", 0.5)  # the clip has a second
    answer = HTTP % b"" + stream
    if kind == "breaks off":
        answer = lengthened(stream, 2 * len(stream))
    with TcpServer(*[answer] * 5, hears=True) as server:
        result = record(
            f"http://127.0.0.1:{server.port}/a.ts", tmp_path / "out.mkv", model=tiny_weights,
            live_depth=50,
        )  # fmt: skip
    assert (result.frames, result.reconnects) == (25, 0)
    broke_off, said = warnings(caplog)
    assert "broke off" in broke_off
    assert "the stream starts anew each time: it is a file" in said


def test_a_live_stream_over_http_that_begins_anew_with_other_pictures_goes_on(
    stream, tiny_weights, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("vsr.connection._LASTING_SECONDS", 0.5)
    other = write_ts(tmp_path / "b.ts", size=(76, 100)).read_bytes()
    stop = threading.Event()
    with TcpServer(HTTP % b"" + stream, HTTP % b"" + other, hears=True) as server:
        result = record(
            f"http://127.0.0.1:{server.port}/a.ts", tmp_path / "out.mkv", model=tiny_weights,
            live_depth=50, stop=stop,
            progress=lambda progress: progress.frames == 50 and stop.set(),
        )  # fmt: skip
    assert (result.frames, result.reconnects) == (50, 1)
    assert "connected again" in caplog.text


def test_rtsp_is_received_with_its_password_and_again(stream, tiny_weights, tmp_path, caplog):
    stop = threading.Event()
    with RtspServer(stream, stream) as server:
        result = record(
            server.url, tmp_path / "out.mkv", model=tiny_weights, live_depth=50, stop=stop,
            progress=lambda progress: progress.frames >= 30 and stop.set(),
        )  # fmt: skip
    assert 30 <= result.frames <= 50
    assert result.reconnects == 1
    assert len(probe(tmp_path / "out.mkv").packets["audio"][0]) > 40
    assert {request.split()[0] for request in server.requests} >= {b"DESCRIBE", b"SETUP", b"PLAY"}
    assert "geheim" not in caplog.text
    assert f"rtsp://***@127.0.0.1:{server.port}/door: connected again" in caplog.text


def test_a_wrong_password_is_said_at_once(stream, tiny_weights, tmp_path):
    with RtspServer(stream) as server:
        url = server.url.replace("geheim", "geheix")
        with pytest.raises(MediaError, match=r"cannot open rtsp://\*\*\*@.*401") as raised:
            record(url, tmp_path / "out.mkv", model=tiny_weights)
    assert "gehei" not in str(raised.value)


@pytest.mark.slow
def test_hls_is_received_at_its_pace(tiny_weights, tmp_path):
    stop = threading.Event()
    with HlsServer(tmp_path, count=8) as server:
        began = time.monotonic()
        result = record(
            server.url, tmp_path / "out.mkv", model=tiny_weights, stop=stop,
            progress=lambda progress: progress.frames == 100 and stop.set(),
        )  # fmt: skip
        passed_seconds = time.monotonic() - began
    assert result.dropped < 10
    assert passed_seconds > 3.5  # 100 frames are 4 s, though segments come at once
    pts_seconds = probe(tmp_path / "out.mkv").pts_seconds
    assert len(pts_seconds) == result.frames >= 100


def test_a_clip_that_lies_at_an_address_is_refused(tiny_weights, tmp_path):
    # Matroska says how long it is
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=50, height=38)
        for _ in range(25):
            container.mux(stream.encode(av.VideoFrame(50, 38, "yuv420p")))
        container.mux(stream.encode(None))
    clip = (tmp_path / "a.mkv").read_bytes()
    head = HTTP % f"Content-Length: {len(clip)}\r\n".encode()
    said = pytest.raises(MediaError, match=r"is a clip of 1\.0 s, not live")
    with TcpServer(head + clip, hears=True) as server, said:
        record(f"http://127.0.0.1:{server.port}/a.mkv", tmp_path / "o.mkv", model=tiny_weights)
    assert not (tmp_path / "o.mkv").exists()


def test_a_picture_at_an_address_is_refused(tiny_weights, tmp_path):
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "rgb24"
    encoder.time_base = Fraction(1)
    (picture,) = encoder.encode(av.VideoFrame(64, 48, "rgb24"))
    with (
        TcpServer(HTTP % b"" + bytes(picture), hears=True) as server,
        pytest.raises(MediaError, match=r"a\.png is a picture, expected a stream"),
    ):
        record(f"http://127.0.0.1:{server.port}/a.png", tmp_path / "o.mkv", model=tiny_weights)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_a_deep_stream_is_not_computed_in_eight_bits(
    stream, tiny_weights, tmp_path, monkeypatch, precision
):
    made = []

    def engine(kept, config, model, size=None):
        made.append(original(kept, config, model, size))
        if config.precision == "auto":
            made[-1].precision = precision
        return made[-1]

    original = KeptEngine.engine
    monkeypatch.setattr(KeptEngine, "engine", engine)
    monkeypatch.setattr("vsr.live_job.needs_float32", lambda info, backend: True)
    with TcpServer(stream, seconds=0.2) as server:
        result = record(
            server.url, tmp_path / "out.mkv", model=tiny_weights, reconnect_seconds=0
        )  # fmt: skip
    assert (len(made), result.precision) == (2, "fp32")
    assert made[0] is not made[1]


def test_reading_has_a_time_limit(stream, tiny_weights, tmp_path):
    with TcpServer(stream, hold_seconds=WAIT_SECONDS) as server:
        began = time.monotonic()
        result = record(
            server.url, tmp_path / "out.mkv", model=tiny_weights, reconnect_seconds=0, live_depth=50
        )
        assert time.monotonic() - began < WAIT_SECONDS / 2
    assert result.frames >= 20  # what was on its way in the decoder comes too


def test_opening_has_a_time_limit(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("vsr.connection.OPEN_SECONDS", 0.3)
    with TcpServer(b"", hold_seconds=WAIT_SECONDS) as server:
        began = time.monotonic()
        with pytest.raises(MediaError, match=f"cannot open {server.url}"):
            record(server.url, tmp_path / "out.mkv", model=tiny_weights)
        assert time.monotonic() - began < WAIT_SECONDS / 2
    assert not list(tmp_path.iterdir())


def test_the_first_picture_has_a_time_limit(stream, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("vsr.live.OPEN_SECONDS", 0.1)
    monkeypatch.setattr("vsr.live.PICTURE_SECONDS", 0.2)
    monkeypatch.setattr(
        "vsr.connection._open", lambda *_: time.sleep(1)
    )  # a name that is looked up long
    with pytest.raises(MediaError, match=r"gave no picture within 0.3 s"):
        record("tcp://127.0.0.1:1", tmp_path / "out.mkv", model=tiny_weights)


def test_a_name_that_was_taken_meanwhile_is_left_alone(stream, tiny_weights, tmp_path):
    output = tmp_path / "out.mkv"
    with TcpServer(stream) as server, pytest.raises(MediaError, match="exists by now"):
        record(
            server.url, output, model=tiny_weights, reconnect_seconds=0,
            progress=lambda _: output.write_text("precious"),
        )  # fmt: skip
    assert output.read_text() == "precious"
    (kept,) = tmp_path.glob("out.*.partial.mkv")
    assert len(probe(kept).pts_seconds) > 0


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_what_was_recorded_before_an_error_is_kept(suffix, stream, tiny_weights, tmp_path, caplog):
    def fail(progress):
        if progress.frames == 5:
            raise RuntimeError("bug")

    with TcpServer(stream) as server, pytest.raises(RuntimeError, match="bug"):
        record(
            server.url, tmp_path / f"out{suffix}", model=tiny_weights, live_depth=50, progress=fail
        )
    (kept,) = tmp_path.iterdir()
    assert kept.name.endswith(f".partial{suffix}")
    assert len(probe(kept).pts_seconds) == 5
    assert f"5 frames are kept in {kept}" in caplog.text
    assert not any(thread.name == "receive" for thread in threading.enumerate())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_recording_that_is_killed_can_be_played(suffix, stream, tmp_path, tiny_weights):
    process = None
    with TcpServer(stream * 100, seconds=25) as server:
        try:
            process = start(server.url, tmp_path / f"out{suffix}", tiny_weights)
            wait_for_frames(process, 150)
        finally:
            end(process)
    (kept,) = tmp_path.glob(f"out.*.partial{suffix}")
    assert not (tmp_path / f"out{suffix}").exists()
    assert len(probe(kept).pts_seconds) > 50


# --- the command line -----------------------------------------------------------------------------


def start(url: str, output: Path, weights: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vsr", "upscale", url, "-o", output, "--weights", weights]
    command += ["--live", "--backend", "pytorch", "--preset", "ultrafast", *more]
    command += ["--progress", "json", "--json"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_frames(process: subprocess.Popen[str], frames: int) -> None:
    """Read its progress until it has written so many; a timer ends a wait that takes too long."""
    timer = threading.Timer(WAIT_SECONDS, process.kill)
    timer.start()
    try:
        for line in process.stderr:
            if line.startswith("{") and json.loads(line)["frame"] >= frames:
                return
        pytest.fail(f"ended before frame {frames}")
    finally:
        timer.cancel()


def end(process: subprocess.Popen[str] | None) -> None:
    if process is not None:
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)


def is_growing(folder: Path) -> bool:
    return any(path.stat().st_size > 2000 for path in folder.glob("*.mkv"))


@contextmanager
def signal_when(there: Callable[[], bool], number: int) -> Iterator[None]:
    """Send this process a signal as soon as something is there, unless the block has ended."""
    over = threading.Event()

    def wait():
        until = time.monotonic() + WAIT_SECONDS
        while not over.wait(0.01) and time.monotonic() < until:
            if there():
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(sys.platform == "win32", reason="signals there are others")
def test_a_signal_ends_a_recording_well(number, stream, tmp_path, tiny_weights, capsys):
    output = tmp_path / "out.mkv"
    arguments = ["-o", str(output), "--weights", str(tiny_weights), "--live", "--json"]
    arguments += ["--backend", "pytorch", "--preset", "ultrafast"]
    with (
        TcpServer(stream * 100, seconds=25) as server,
        signal_when(lambda: is_growing(tmp_path), number),
    ):
        assert main(["upscale", server.url, *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["input"] == server.url
    assert len(probe(output).pts_seconds) == result["frames"] >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals there are others")
def test_a_second_signal_breaks_it_off_and_keeps_what_there_is(
    stream, tmp_path, tiny_weights, capsys, monkeypatch
):
    finish = Recording.finish

    def interrupted(self, sound):
        os.kill(os.getpid(), signal.SIGINT)
        finish(self, sound)

    monkeypatch.setattr(Recording, "finish", interrupted)
    arguments = ["-o", str(tmp_path / "out.mkv"), "--weights", str(tiny_weights), "--live"]
    arguments += ["--backend", "pytorch", "--preset", "ultrafast"]
    with (
        TcpServer(stream * 100, seconds=25) as server,
        signal_when(lambda: is_growing(tmp_path), signal.SIGINT),
    ):
        assert main(["upscale", server.url, *arguments]) == 130
    (kept,) = tmp_path.iterdir()
    assert len(probe(kept).pts_seconds) > 0
    assert f"frames are kept in {kept}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals there are others")
def test_a_process_ends_soon_after_its_signal(stream, tmp_path, tiny_weights):
    output, process = tmp_path / "out.mkv", None
    with TcpServer(stream * 100, seconds=25) as server:
        try:
            process = start(server.url, output, tiny_weights)
            wait_for_frames(process, 5)
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=WAIT_SECONDS)
        finally:
            end(process)
    assert process.returncode == 0
    assert len(probe(output).pts_seconds) == json.loads(out)["frames"] >= 5


@pytest.mark.skipif(sys.platform == "win32", reason="signals there are others")
def test_a_signal_before_the_first_frame_leaves_nothing(tmp_path, tiny_weights, capsys):
    arguments = ["--weights", str(tiny_weights), "--live", "--backend", "pytorch"]
    with (
        TcpServer(b"", hold_seconds=WAIT_SECONDS) as server,
        signal_when(server.served.is_set, signal.SIGINT),
    ):
        assert main(["upscale", server.url, "-o", str(tmp_path / "out.mkv"), *arguments]) == 130
    assert "ended before its first frame, no output was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_password_is_in_any_word_or_file_name(stream, tmp_path, tiny_weights, capsys):
    with TcpServer(stream) as server:
        url = f"tcp://admin:geheim@127.0.0.1:{server.port}/?token=geheim"
        arguments = [url, "-o", f"{tmp_path}/", "--weights", str(tiny_weights), "--live"]
        arguments += ["--reconnect", "0", "--backend", "pytorch", "--json", "-v"]
        codes = [main(["upscale", *arguments, "--progress", "json"])]
        server.close()
        codes += [main(["upscale", *arguments, "--overwrite"])]  # refused: nobody listens
    out, err = capsys.readouterr()
    assert codes == [0, 1]
    assert "geheim" not in out + err
    assert "admin" not in out + err
    assert f"tcp://***@127.0.0.1:{server.port}" in err
    assert [path.name for path in tmp_path.iterdir()] == [f"127.0.0.1-{server.port}_x2.mkv"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["http://127.0.0.1/clip.mp4"], 2, "is an address: --live records it"),
        (["clip.mp4", "--live"], 2, "live takes the address of a stream, got clip.mp4"),
        (["tcp://127.0.0.1:1", "clip.mp4", "--live"], 2, "recorded alone"),
        (["tcp://127.0.0.1:1", "--live", "--live-depth", "0"], 2, "at least 1, got 0"),
        (["tcp://127.0.0.1:1", "--live", "--reconnect", "-1"], 2, "0 seconds or more"),
        (["clip.mp4", "--live-depth", "3"], 2, "--live-depth and --reconnect are for --live"),
        (["tcp://127.0.0.1:1", "--live", "--fps", "25"], 2, "has its own times"),
        (["tcp://127.0.0.1:1", "--live", "--decoder", "nvdec"], 2, "decoded on the CPU"),
        (["gopher://127.0.0.1/1", "--live"], 1, "known are rtsp://"),
        (["tcp://127.0.0.1:1", "--live", "-o", "out.avi"], 1, "cannot open tcp://127.0.0.1:1"),
    ],
)
def test_wrong_usage_is_one_line(arguments, code, said, capsys, tiny_weights):
    arguments = [*arguments, "--weights", str(tiny_weights), "--backend", "pytorch"]
    assert main(["upscale", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err


def test_a_container_that_cannot_grow_is_refused(stream, tmp_path, tiny_weights):
    with TcpServer(stream) as server, pytest.raises(MediaError, match=r"recorded as .*out.avi"):
        record(server.url, tmp_path / "out.avi", model=tiny_weights)
    assert not list(tmp_path.iterdir())


def test_nothing_is_logged_at_all_when_all_is_well(stream, tmp_path, tiny_weights, caplog):
    caplog.set_level(logging.WARNING)
    stop = threading.Event()
    with TcpServer(stream, hold_seconds=WAIT_SECONDS) as server:
        record(
            server.url, tmp_path / "out.mkv", model=tiny_weights, live_depth=50, stop=stop,
            progress=lambda progress: progress.frames >= 5 and stop.set(),
        )  # fmt: skip
    assert [
        record.message for record in caplog.records if "came too fast" not in record.message
    ] == []

"""Interrupted jobs: they go on where they stopped and end in the same file, to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import pytest
from conftest import write_clip
from media import probe

import vsr
from engines import load_model
from engines.errors import MediaError
from vsr import segments
from vsr.choices import segment_frames
from vsr.cli import main
from vsr.fingerprint import fingerprint
from vsr.journal import Journal, Segment, partial_folder
from vsr.packets import Packet, PacketFile, read_packets, read_times, sha256
from vsr.segments import SegmentedWriter, joined

upscale = partial(vsr.upscale, backend="pytorch", preset="ultrafast", threads=1)


class Stop(Exception):
    """What interrupts a job in these tests."""


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 20)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    """50 frames: two whole segments and a half; with sound and B-frames."""
    return write_clip(
        tmp_path_factory.mktemp("clips") / "long.mp4", size=(40, 56),
        pts=tuple(range(0, 25600, 512)), audio_seconds=2,
    )  # fmt: skip


def interrupt(source: Path, output: Path, weights: Path, *, after: int, **arguments) -> None:
    """Start a job and stop it when so many frames are written."""

    def stop(progress):
        if progress.frames == after:
            raise Stop

    with pytest.raises(Stop):
        upscale(source, output, model=weights, progress=stop, **arguments)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_resumed_job_ends_in_the_same_file(suffix, long_clip, tiny_weights, tmp_path, caplog):
    upscale(long_clip, tmp_path / f"whole{suffix}", model=tiny_weights)
    output = tmp_path / f"out{suffix}"
    interrupt(long_clip, output, tiny_weights, after=45)
    assert names_in(tmp_path) == [f"out{suffix}.partial", f"whole{suffix}"]
    assert "40 frames are kept in" in caplog.text
    seen = []
    result = upscale(long_clip, output, model=tiny_weights, progress=seen.append)
    assert "going on after 40 frames" in caplog.text
    assert (result.frames, result.resumed) == (50, 40)
    assert [progress.frames for progress in seen] == list(range(41, 51))
    assert sha256(output) == sha256(tmp_path / f"whole{suffix}")
    assert names_in(tmp_path) == [f"out{suffix}", f"whole{suffix}"]


def test_frames_before_the_first_whole_segment_leave_nothing(long_clip, tiny_weights, tmp_path):
    interrupt(long_clip, tmp_path / "out.mp4", tiny_weights, after=19)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("moment", ["read_times", "sync_folder"])
def test_an_interruption_while_a_segment_is_closed_loses_none_before_it(
    moment, long_clip, tiny_weights, tmp_path, monkeypatch
):
    calls = []
    original = getattr(segments, moment)

    def interrupted(path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(path)

    monkeypatch.setattr(segments, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights)
    assert upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights).resumed == 20
    assert names_in(tmp_path) == ["out.mp4"]


def test_an_interruption_after_the_journal_loses_nothing(
    long_clip, tiny_weights, tmp_path, monkeypatch
):
    def interrupted(journal, path):
        save(journal, path)
        raise KeyboardInterrupt

    save = Journal.save
    monkeypatch.setattr(Journal, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights)
    monkeypatch.setattr(Journal, "save", save)
    assert upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights).resumed == 20


def test_no_resume_neither_takes_over_nor_leaves(long_clip, tiny_weights, tmp_path):
    output = tmp_path / "out.mp4"
    interrupt(long_clip, output, tiny_weights, after=45)
    interrupt(long_clip, output, tiny_weights, after=45, resume=False)
    assert names_in(tmp_path) == []
    interrupt(long_clip, output, tiny_weights, after=45)
    assert upscale(long_clip, output, model=tiny_weights, resume=False).resumed == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"crf": 30}, "crf was None, is 30"), ({"scale": 1}, r"output size was \[80, 112\], is")],
)
def test_a_changed_setting_starts_anew(
    arguments, message, long_clip, tiny_weights, tmp_path, caplog
):
    upscale(long_clip, tmp_path / "whole.mp4", model=tiny_weights, **arguments)
    interrupt(long_clip, tmp_path / "out.mp4", tiny_weights, after=45)
    result = upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights, **arguments)
    assert result.resumed == 0
    assert "starting anew, without the 40 frames" in caplog.text
    assert re.search(message, caplog.text)
    assert sha256(tmp_path / "out.mp4") == sha256(tmp_path / "whole.mp4")


def test_a_changed_input_starts_anew(long_clip, tiny_weights, tmp_path, caplog):
    source = tmp_path / "in.mp4"
    source.write_bytes(long_clip.read_bytes())
    interrupt(source, tmp_path / "out.mp4", tiny_weights, after=45)
    write_clip(source, pts=tuple(range(0, 512 * 30, 512)), level=200)
    result = upscale(source, tmp_path / "out.mp4", model=tiny_weights)
    assert (result.frames, result.resumed) == (30, 0)
    assert "source was" in caplog.text


def test_a_copy_of_the_input_is_the_same_input(long_clip, tiny_weights, tmp_path):
    """Whatever its time and name."""
    upscale(long_clip, tmp_path / "whole.mp4", model=tiny_weights)
    interrupt(long_clip, tmp_path / "out.mp4", tiny_weights, after=45)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(long_clip.read_bytes())
    os.utime(copy, (0, 0))
    assert upscale(copy, tmp_path / "out.mp4", model=tiny_weights).resumed == 40
    assert sha256(tmp_path / "out.mp4") == sha256(tmp_path / "whole.mp4")


@pytest.mark.parametrize("at", [0, 1 << 19, 2_500_000, 4_999_999])
def test_a_fingerprint_sees_head_middle_and_tail(at, tmp_path):
    path = tmp_path / "in"
    data = bytearray(5_000_000)
    path.write_bytes(data)
    before = fingerprint(path)
    data[at] = 1
    path.write_bytes(data)
    assert fingerprint(path) != before
    assert fingerprint(path)["bytes"] == 5_000_000


def test_small_files_have_a_fingerprint_too(tmp_path):
    path = tmp_path / "in"
    found = []
    for data in (b"", b"a", b"ab", b"ba"):
        path.write_bytes(data)
        found.append(str(fingerprint(path)))
    assert len(set(found)) == 4


def test_an_input_that_decodes_to_other_frames_is_not_mixed(long_clip, tiny_weights, tmp_path):
    output = tmp_path / "out.mp4"
    interrupt(long_clip, output, tiny_weights, after=45)
    path = partial_folder(output) / "journal.json"
    journal = json.loads(path.read_text())
    journal["segments"][1]["last_pts"] += 1
    path.write_text(json.dumps(journal))
    with pytest.raises(MediaError, match=r"decodes to other frames .* --no-resume starts anew"):
        upscale(long_clip, output, model=tiny_weights)
    assert upscale(long_clip, output, model=tiny_weights, resume=False).frames == 50


@pytest.mark.parametrize(
    "damage",
    ["truncated", "empty", "foreign", "list", "other format", "misnumbered", "binary", "negative"],
)
def test_a_damaged_journal_starts_anew(damage, long_clip, tiny_weights, tmp_path, caplog):
    output = tmp_path / "out.mp4"
    interrupt(long_clip, output, tiny_weights, after=45)
    path = partial_folder(output) / "journal.json"
    text = path.read_text()
    journal = json.loads(text)
    path.write_bytes({
        "truncated": text[: len(text) // 2].encode(),
        "empty": b"",
        "foreign": b'{"name": "package", "version": 3}',
        "list": b"[1, 2]",
        "other format": text.replace("vsr-segments/1", "vsr-segments/9").encode(),
        "misnumbered": json.dumps({**journal, "segments": journal["segments"][1:]}).encode(),
        "binary": os.urandom(500),
        "negative": text.replace('"frames": 20', '"frames": -20').encode(),
    }[damage])  # fmt: skip
    result = upscale(long_clip, output, model=tiny_weights)
    assert (result.frames, result.resumed) == (50, 0)
    assert "journal.json is damaged, starting anew" in caplog.text
    assert names_in(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize(("index", "resumed"), [(0, 0), (1, 20)])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_segment_is_made_again(
    damage, index, resumed, long_clip, tiny_weights, tmp_path, caplog
):
    upscale(long_clip, tmp_path / "whole.mp4", model=tiny_weights)
    output = tmp_path / "out.mp4"
    interrupt(long_clip, output, tiny_weights, after=45)
    path = partial_folder(output) / f"00000{index}.packets"
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "changed" else data[:-1])
    result = upscale(long_clip, output, model=tiny_weights)
    assert result.resumed == resumed
    assert f"00000{index}.packets is damaged" in caplog.text
    assert sha256(output) == sha256(tmp_path / "whole.mp4")


def test_a_job_that_only_lacks_its_last_step_is_finished(long_clip, tiny_weights, tmp_path):
    """As after SIGKILL between the renaming and the end."""
    output = tmp_path / "out.mp4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentedWriter, "_remove", lambda writer: writer._lock.close())
        upscale(long_clip, output, model=tiny_weights)
    assert names_in(tmp_path) == ["out.mp4", "out.mp4.partial"]
    before = output.stat()
    result = upscale(long_clip, output, model=tiny_weights)
    assert (result.frames, result.resumed) == (50, 50)
    assert output.stat() == before
    assert names_in(tmp_path) == ["out.mp4"]


def test_what_lacks_its_last_step_is_not_replaced_by_another_job(long_clip, tiny_weights, tmp_path):
    output = tmp_path / "out.mp4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentedWriter, "_remove", lambda writer: writer._lock.close())
        upscale(long_clip, output, model=tiny_weights)
    before = output.stat()
    with pytest.raises(MediaError, match=r"out.mp4 exists: --overwrite replaces it"):
        upscale(long_clip, output, model=tiny_weights, crf=30)
    assert output.stat() == before


# --- killed ---------------------------------------------------------------------------------------


def crash(source: Path, weights: Path, folder: Path, *, kills: int, seed: int) -> dict:
    script = Path(__file__).with_name("crashing.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, source, weights, str(kills), str(seed)],
        cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=110,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_at_any_moment_cost_nothing_but_time(kills, long_clip, tiny_weights, tmp_path):
    found = crash(long_clip, tiny_weights, tmp_path, kills=kills, seed=kills)
    assert found["wrong"] == []
    assert found["killed"] == kills
    assert found["finished"] >= 1
    assert found["left"] == []
    if kills == 50:  # it died while encoding, while joining and while tidying up
        assert {"write", "_mux_picture", "_mux_other", "unlink"} <= found["deaths"].keys()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # no other thread is at work here
@pytest.mark.parametrize("step", ["compare_times", "fsync joined", "replace output", "tidy up"])
def test_a_kill_while_joining_and_renaming_is_mended(step, long_clip, tiny_weights, tmp_path):
    """At the very steps, since chance meets them seldom."""
    upscale(long_clip, tmp_path / "whole.mp4", model=tiny_weights)
    output = tmp_path / "out.mp4"
    child = os.fork()
    if child == 0:
        patch = pytest.MonkeyPatch()
        kill = lambda *_, **__: os.kill(os.getpid(), 9)  # noqa: E731
        if step == "compare_times":
            patch.setattr(segments, "compare_times", kill)
        elif step == "fsync joined":
            patch.setattr(segments, "stamp", kill)
        elif step == "replace output":
            replace = os.replace
            patch.setattr(
                os, "replace", lambda a, b: kill() if Path(b) == output else replace(a, b)
            )
        else:
            patch.setattr(SegmentedWriter, "_remove", kill)
        upscale(long_clip, output, model=tiny_weights)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert output.exists() == (step == "tidy up")
    result = upscale(long_clip, output, model=tiny_weights)
    assert result.resumed == 50
    assert sha256(output) == sha256(tmp_path / "whole.mp4")
    assert names_in(tmp_path) == ["out.mp4", "whole.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals there are others")
def test_the_command_goes_on_after_ctrl_c(long_clip, tiny_weights, tmp_path):
    code = "import sys, vsr.segments, vsr.cli\nvsr.segments.SEGMENT_FRAMES = 20\n"
    command = [sys.executable, "-c", code + "sys.exit(vsr.cli.main(sys.argv[1:]))", "upscale"]
    command += [str(long_clip), "--weights", str(tiny_weights), "--threads", "1"]
    command += ["--backend", "pytorch", "--preset", "ultrafast"]
    slow = [*command, "-o", str(tmp_path / "out.mp4")]
    slow[2] = slow[2].replace(
        "sys.exit", "import time; write = vsr.segments.SegmentedWriter.write\n"
        "vsr.segments.SegmentedWriter.write = lambda *a: (time.sleep(0.02), write(*a))\nsys.exit",
    )  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(slow, stderr=subprocess.PIPE, text=True, env=environment) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "out.mp4.partial" / "journal.json").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    kept, last = err.splitlines()
    assert re.fullmatch(r"vsr: warning: [24]0 frames are kept in .*: the same command .*", kept)
    assert last == "vsr: interrupted, no output was written"
    upscale(long_clip, tmp_path / "whole.mp4", model=tiny_weights)
    assert upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights).resumed > 0
    assert sha256(tmp_path / "out.mp4") == sha256(tmp_path / "whole.mp4")


def test_a_full_disk_costs_no_whole_segment(long_clip, tiny_weights, tmp_path, monkeypatch):
    upscale(long_clip, tmp_path / "whole.mp4", model=tiny_weights)
    written = []

    def full(self, packet):
        written.append(packet)
        if len(written) > 30:
            raise OSError(28, "No space left on device")
        return write(self, packet)

    write = PacketFile.write
    monkeypatch.setattr(PacketFile, "write", full)
    with pytest.raises(MediaError, match=r"cannot write .*out.mp4: no space left on device"):
        upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights)
    monkeypatch.setattr(PacketFile, "write", write)
    assert upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights).resumed == 20
    assert sha256(tmp_path / "out.mp4") == sha256(tmp_path / "whole.mp4")


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
def test_a_really_full_disk_is_one_line_and_mended(long_clip, tiny_weights, tmp_path, capsys):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk")
    try:
        upscale(long_clip, tmp_path / "whole.mp4", model=tiny_weights, crf=0)
        room = (tmp_path / "whole.mp4").stat().st_size
        output, ballast = small / "out.mp4", small / "ballast"
        ballast.write_bytes(bytes((256 << 10) - room - room // 2))  # joining will not fit
        command = ["upscale", long_clip, "-o", output, "--weights", tiny_weights, "--crf", "0"]
        command += ["--backend", "pytorch", "--preset", "ultrafast", "--threads", "1"]
        assert main([str(word) for word in command]) == 1
        kept, error = capsys.readouterr().err.splitlines()
        assert "50 frames are kept in" in kept
        assert error.startswith(f"vsr: error: cannot write {output}: no space left on device")
        assert names_in(small) == ["ballast", "out.mp4.partial"]
        ballast.unlink()
        assert main([str(word) for word in command]) == 0
        assert sha256(output) == sha256(tmp_path / "whole.mp4")
        assert names_in(small) == ["out.mp4"]
    finally:
        subprocess.run(["umount", small], check=True)


# --- two at once ----------------------------------------------------------------------------------


def test_a_second_run_on_the_same_output_stops(long_clip, tiny_weights, tmp_path):
    output = tmp_path / "out.mp4"

    def second(progress):
        if progress.frames == 25:
            with pytest.raises(MediaError, match=r"out.mp4 is being made by another run already"):
                upscale(long_clip, output, model=tiny_weights, overwrite=True)

    assert upscale(long_clip, output, model=tiny_weights, progress=second).frames == 50
    assert names_in(tmp_path) == ["out.mp4"]


def test_a_foreign_file_in_the_folder_is_left_alone(long_clip, tiny_weights, tmp_path):
    folder = partial_folder(tmp_path / "out.mp4")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights)
    assert names_in(folder) == ["notes.txt"]


def test_wrong_options_do_not_cost_what_an_earlier_run_made(long_clip, tiny_weights, tmp_path):
    output = tmp_path / "out.mp4"
    interrupt(long_clip, output, tiny_weights, after=45)
    with pytest.raises(MediaError, match="cannot write"):
        upscale(long_clip, output, model=tiny_weights, encoder="libvpx", crf=None, preset="bad")
    assert upscale(long_clip, output, model=tiny_weights).resumed == 40


# --- joining --------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["libx264", "libx265", "libsvtav1", "libvpx-vp9"])
def test_joined_segments_have_every_frame_at_its_time(encoder, tiny_weights, tmp_path):
    steps = [1, 2, 700, 3000, 17] * 12
    pts = tuple(300 + sum(steps[:index]) for index in range(len(steps)))
    source = write_clip(tmp_path / "in.mp4", pts=pts, size=(40, 64))
    vsr.upscale(
        source, tmp_path / "out.mp4", model=tiny_weights, backend="pytorch", encoder=encoder
    )
    after = probe(tmp_path / "out.mp4")
    assert after.pts_seconds == probe(source).pts_seconds
    assert after.broken_packets == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert all(a.dts < b.dts for a, b in pairwise(packets))
    assert all(packet.dts <= packet.pts for packet in packets)
    assert sum(packet.is_keyframe for packet in packets) >= 3  # each segment begins with one


def write_packets(path: Path, times: list[int]) -> Path:
    file = PacketFile(path)
    for index, pts in enumerate(times):
        file.write(Packet(pts, 40, index == 0, bytes([index])))
    assert file.close() == hashlib.sha256(path.read_bytes()).hexdigest()
    return path


def test_dts_run_on_across_segments_as_one_encoder_would_deal_them_out(tmp_path):
    first = write_packets(tmp_path / "a", [0, 80, 40, 120])  # one frame is moved by one
    second = write_packets(tmp_path / "b", [160, 1000, 900, 170])  # and here by two
    found = [(packet.pts, dts) for packet, dts in joined([first, second])]
    assert [pts for pts, _ in found] == [0, 80, 40, 120, 160, 1000, 900, 170]
    assert [dts for _, dts in found] == [-80, -40, 0, 40, 80, 120, 160, 170]


def test_a_single_frame_has_its_own_time_for_dts(tmp_path):
    assert [dts for _, dts in joined([write_packets(tmp_path / "a", [70])])] == [70]
    assert list(joined([])) == []


def test_packets_survive_their_file(tmp_path):
    packets = [Packet(-5, 0, True, b"abc"), Packet(1 << 40, 7, False, bytes(100_000))]
    file = PacketFile(tmp_path / "a")
    for packet in packets:
        file.write(packet)
    file.close()
    assert list(read_packets(tmp_path / "a")) == packets
    assert read_times(tmp_path / "a") == [-5, 1 << 40]


@pytest.mark.parametrize("loss", ["dropped", "doubled", "moved"])
def test_a_frame_lost_in_joining_is_found(loss, long_clip, tiny_weights, tmp_path, monkeypatch):
    original = segments.joined

    def lossy(paths):
        for index, (packet, dts) in enumerate(original(paths)):
            if index == 30 and loss == "dropped":
                continue
            if index == 49 and loss == "doubled":
                yield Packet(packet.pts - 5, 5, False, packet.data), dts - 5
            if index == 49 and loss == "moved":
                packet = Packet(packet.pts + 400, 5, False, packet.data)
            yield packet, dts

    monkeypatch.setattr(segments, "joined", lossy)
    with pytest.raises(MediaError, match=r"was not written whole|at another time|more than the 50"):
        upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights)
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("model", "size", "frames"),
    [
        ("srgan-lite", (270, 480), 250),
        ("srgan-lite", (1080, 1920), 246),
        ("srgan", (270, 480), 173),
        ("srgan", (1080, 1920), 50),
    ],
)
def test_a_segment_is_shorter_where_frames_take_long(model, size, frames, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 250)
    assert segment_frames(load_model(model), size) == frames


def test_a_clip_is_cut_into_segments_of_that_length(long_clip, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("vsr.choices._SEGMENT_MACS", 1)
    monkeypatch.setattr("vsr.choices._LEAST_SEGMENT", 15)
    seen = []
    upscale(long_clip, tmp_path / "out.mp4", model=tiny_weights, progress=seen.append)
    assert [sum(p.segment == n for p in seen) for n in range(5)] == [15, 15, 15, 5, 0]


def test_a_container_with_a_coarse_clock_says_so_at_once(tiny_weights, tmp_path):
    source = write_clip(
        tmp_path / "in.mp4",
        pts=(0, 40_000, 40_005, 80_000),
        time_base=Fraction(1, 1_000_000),
        size=(40, 64),
    )
    with pytest.raises(MediaError, match=r"out.ts counts time in .* s, but frames 2 and 3"):
        upscale(source, tmp_path / "out.ts", model=tiny_weights)
    assert names_in(tmp_path) == ["in.mp4"]


def test_an_encoders_own_reason_is_told(tiny_weights, tmp_path):
    source = write_clip(tmp_path / "in.mp4", pts=(0, 3000), time_base=Fraction(1, 90000))
    with pytest.raises(MediaError, match=r"encoder mpeg4: .*denominator is 65535"):
        upscale(source, tmp_path / "out.mp4", model=tiny_weights, encoder="mpeg4", preset=None)
    assert names_in(tmp_path) == ["in.mp4"]


# --- the journal ----------------------------------------------------------------------------------


def test_a_journal_is_read_as_it_was_written(tmp_path):
    journal = Journal({"crf": 16}, [Segment("000000.packets", 20, 0, 9728, "ab")], finished=True)
    journal.save(tmp_path / "journal.json")
    assert Journal.load(tmp_path / "journal.json") == journal
    assert names_in(tmp_path) == ["journal.json"]
    assert Journal.load(tmp_path / "none.json") is None


def test_long_names_get_a_folder_too(tmp_path):
    long = tmp_path / ("ü" * 120 + ".mp4")
    folder = partial_folder(long)
    folder.mkdir()
    assert folder != partial_folder(tmp_path / ("ü" * 119 + "a.mp4"))
    assert partial_folder(tmp_path / "a.mp4").name == "a.mp4.partial"

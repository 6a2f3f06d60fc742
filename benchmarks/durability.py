"""Does a job survive what happens to computers?

    python benchmarks/durability.py [--kills N] [--mutants N] [--frames N] [--json FILE]

Five parts, on clips made here and by a tiny network:

    kills      SIGKILL again and again, at random moments and at random steps on the disk, those of
               joining and renaming among them; each time the same command again. The file must be
               that of an uninterrupted run, to the bit, and nothing else be left.
    full disk  a file system with room for one segment (a tmpfs, or a limit on the size of a file
               where none can be mounted): one line, no output; with room again, the same file.
    read-only  a folder that must not be written: one line, no output.
    mutants    damaged clips, each through the whole command in a process of its own with a time
               limit: no hang, no traceback, no output after an error, nothing left behind.
    long       a clip of many frames: memory and open files, sampled, must not grow.

The last line of stdout is one JSON document; the same goes to `--json` (default:
benchmarks/results/durability.json). The exit code is 1 if any part went wrong. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import av  # noqa: E402

from benchmarks.generated import write_clip  # noqa: E402
from benchmarks.report import environment, publish, tiny_weights  # noqa: E402

PART_SECONDS = 1500  # no part may take longer
JOB_SECONDS = 300
SAMPLE_SECONDS = 0.1
ROOM = 0.6  # of the finished file: one segment of 250 frames fits, not two
GROWTH_BYTES = 16 << 20  # from a fifth of the way to the end; the allocator's own ups and downs
# where a kill may hit, by what it interrupts; see tests/crashing.py
JOINING = {"_mux_picture", "_mux_other", "compare_times"}
RENAMING = {"replace", "unlink", "rmdir"}
_MUTANT_CLIPS = {".mp4", ".mkv", ".webm", ".mov", ".ts", ".avi"}
_LARGEST_MUTANT_BYTES = 60_000  # real clips to damage: small ones, as there are many mutants


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    p = argparse.ArgumentParser(description="Does a job survive what happens to computers?")
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("--mutants", type=int, default=300)
    p.add_argument("--frames", type=int, default=20_000, help="of the long clip")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--clips", type=Path, default=ROOT.parent / "shared" / "data" / "clips")
    p.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/durability.json")
    options = p.parse_args(argv)
    wrong: list[str] = []

    def measure() -> dict[str, Any]:
        document: dict[str, Any] = {"environment": environment("numpy", "av")}
        for name, part in parts(options).items():
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found = part(Path(folder))
                except subprocess.TimeoutExpired as error:
                    found = {"wrong": [f"a hang: {error}"]}
                except subprocess.CalledProcessError as error:
                    found = {"wrong": [f"{error}: {str(error.stderr)[-300:]}"]}
            document[name] = found | {"seconds": round(time.monotonic() - began, 1)}
            wrong.extend(f"{name}: {sentence}" for sentence in found["wrong"])
            print(f"{name}: {json.dumps(document[name])}", flush=True)
        document["wrong"] = wrong
        return document

    code = publish("durability", measure, options.json)
    return code or bool(wrong)


def parts(options: argparse.Namespace) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Name the parts; each takes a folder of its own and says under "wrong" what went wrong."""
    return {
        "kills": lambda folder: kills(folder, options.kills, options.seed),
        "full disk": full_disk,
        "read-only": read_only,
        "mutants": lambda folder: mutants(folder, options.mutants, options.seed, options.clips),
        "long": lambda folder: long_clip(folder, options.frames),
    }


def kills(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill a job `count` times; see tests/crashing.py."""
    clip = write_clip(folder / "in.mp4", times=range(0, 65 * 40, 40), sound_seconds=2.6)
    weights = tiny_weights(folder)
    place = folder / "place"
    place.mkdir()
    found = script("crashing.py", [clip, weights, count, seed], place)
    wrong = list(found["wrong"])
    if found["left"]:
        wrong.append(f"left {found['left']}")
    if found["killed"] != count:
        wrong.append(f"{found['killed']} kills of {count}")
    deaths = found["deaths"]
    return {
        "killed": found["killed"], "runs that ended": found["finished"],
        "at a random moment": found["killed"] - sum(deaths.values()),
        "at a step of encoding": sum(
            times for name, times in deaths.items() if name not in JOINING | RENAMING
        ),
        "while joining": sum(deaths.get(name, 0) for name in JOINING),
        "while renaming and tidying up": sum(deaths.get(name, 0) for name in RENAMING),
        "wrong": wrong,
    }  # fmt: skip


def full_disk(folder: Path) -> dict[str, Any]:
    """Run out of room in the middle, then go on with more."""
    clip = write_clip(folder / "in.mp4", times=range(0, 600 * 40, 40))
    weights = tiny_weights(folder)
    whole, output = folder / "whole.mp4", folder / "disk" / "out.mp4"
    output.parent.mkdir()
    run([clip, "-o", whole, "--weights", weights])
    room = round(ROOM * whole.stat().st_size)
    job = [clip, "-o", output, "--weights", weights]
    mounted = mount(output.parent, f"size={room}")
    limit = [] if mounted else ["prlimit", f"--fsize={room}"]
    try:
        code, said = run(job, limit)
        wrong = unlike_one_line(code, said, output)
        if mounted:
            subprocess.run(
                ["mount", "-o", "remount,size=64m", output.parent], check=True, timeout=60
            )
        code, again = run(job)
        if code != 0 or digest(output) != digest(whole):
            wrong.append(f"with room again: exit code {code}, {again[-300:]}")
    finally:
        if mounted:
            subprocess.run(["umount", output.parent], check=False, timeout=60)
    method = "tmpfs" if mounted else "RLIMIT_FSIZE"
    return {"room bytes": room, "by": method, "said": without(said, folder), "wrong": wrong}


def mount(place: Path, options: str) -> bool:
    """Mount a file system in memory, if this user may."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def read_only(folder: Path) -> dict[str, Any]:
    """Write where one must not."""
    clip, weights = write_clip(folder / "in.mp4"), tiny_weights(folder)
    place = folder / "place"
    place.mkdir()
    mounted = mount(place, "ro")
    if not mounted:
        place.chmod(0o555)
    try:
        code, said = run([clip, "-o", place / "out.mp4", "--weights", weights])
        wrong = unlike_one_line(code, said, place / "out.mp4")
        if list(place.iterdir()):
            wrong.append(f"left {list(place.iterdir())}")
    finally:
        if mounted:
            subprocess.run(["umount", place], check=False, timeout=60)
    return {"by": "mount" if mounted else "chmod", "said": without(said, folder), "wrong": wrong}


def mutants(folder: Path, count: int, seed: int, real: Path) -> dict[str, Any]:
    """Damage clips, generated and real, and run the command on each; see tests/mutating.py."""
    ticks, per_second = range(0, 90_000, 3600), Fraction(1, 90_000)
    frames, one = range(25), Fraction(1, 25)
    clips = [
        write_clip(folder / "a.mp4", sound_seconds=1),
        write_clip(folder / "b.mkv", codec="libx265"),
        write_clip(folder / "c.avi", codec="mpeg4", times=frames, time_base=one, sound_seconds=1),
        write_clip(folder / "d.webm", codec="libvpx-vp9"),
        write_clip(folder / "e.ts", times=ticks, time_base=per_second, sound_seconds=1),
        write_clip(folder / "f.mov", codec="mpeg4", times=frames, time_base=one),
    ]
    if real.is_dir():
        clips += sorted(
            path
            for path in real.rglob("*")
            if path.suffix in _MUTANT_CLIPS and path.stat().st_size <= _LARGEST_MUTANT_BYTES
        )
    place = folder / "place"
    place.mkdir()
    found = script("mutating.py", [tiny_weights(folder), count, seed, *clips], place)
    tried = sum(found["codes"].values())
    wrong = list(found["wrong"])
    if tried != count:
        wrong.append(f"{tried} mutants of {count}")
    return {
        "tried": tried, "of clips": len(clips), "upscaled as far as they decode":
        found["codes"].get("0", 0), "refused in one line": found["codes"].get("1", 0),
        "wrong": wrong,
    }  # fmt: skip


def long_clip(folder: Path, frames: int) -> dict[str, Any]:
    """Upscale many small frames and look at the process meanwhile."""
    clip = write_clip(folder / "in.mp4", size=(32, 32), times=range(0, frames * 40, 40))
    output = folder / "out.mp4"
    command = upscale([clip, "-o", output, "--weights", tiny_weights(folder)])
    memory: list[int] = []
    files: list[int] = []
    quiet = [*command, "-q"]  # a full pipe would stop it
    with subprocess.Popen(quiet, stderr=subprocess.PIPE, env=variables()) as process:
        until = time.monotonic() + PART_SECONDS
        while process.poll() is None:
            if time.monotonic() > until:
                process.kill()
            if (folder / "out.mp4.partial" / "journal.json").exists():
                memory.append(resident_bytes(process.pid))
                files.append(open_files(process.pid))
            time.sleep(SAMPLE_SECONDS)
        said = process.stderr.read().decode() if process.stderr else ""
    wrong = [] if process.returncode == 0 else [f"exit code {process.returncode}: {said[-300:]}"]
    memory, files = [m for m in memory if m], [f for f in files if f]
    if len(memory) < 10:
        return {"wrong": [*wrong, f"only {len(memory)} samples"]}
    with av.open(str(output)) as container:
        written = sum(bool(packet.size) for packet in container.demux(video=0))
    if written != frames:
        wrong.append(f"{written} frames of {frames}")
    fifth = len(memory) // 5
    early, late = statistics.median(memory[fifth : 2 * fifth]), max(memory[-fifth:])
    if late - early > GROWTH_BYTES:
        wrong.append(f"memory grew from {early} to {late} bytes")
    if max(files[-fifth:]) > max(files[:fifth]) + 2:  # the join reads while it writes
        wrong.append(f"open files grew from {max(files[:fifth])} to {max(files[-fifth:])}")
    return {
        "frames": written, "samples": len(memory), "early bytes": int(early), "late bytes": late,
        "open files": [min(files), max(files)], "wrong": wrong,
    }  # fmt: skip


def resident_bytes(process: int) -> int:
    """Return the memory that a process has; 0 when it is gone."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def open_files(process: int) -> int:
    """Count the files that a process has open; 0 when it is gone."""
    try:
        return sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return 0


def script(name: str, arguments: list[Any], place: Path) -> Any:
    """Run a script of the tests in a folder and return the JSON that it writes."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / name, *map(str, arguments)],
        cwd=place, env=variables(), capture_output=True, text=True, check=True,
        timeout=PART_SECONDS,
    )  # fmt: skip
    return json.loads(done.stdout)


def upscale(arguments: list[Any]) -> list[str]:
    """Complete a command."""
    command = [sys.executable, "-m", "vsr", "upscale", *map(str, arguments)]
    return [*command, "--backend", "pytorch", "--threads", "1", "--preset", "ultrafast"]


def run(arguments: list[Any], before: list[str] | None = None) -> tuple[int, str]:
    """Run a command, and return its exit code and what it said on stderr."""
    done = subprocess.run(
        [*(before or []), *upscale(arguments)],
        capture_output=True, text=True, check=False, timeout=JOB_SECONDS, env=variables(),
    )  # fmt: skip
    return done.returncode, done.stderr.strip()


def variables() -> dict[str, str]:
    """Return the environment of a command that runs from the checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def unlike_one_line(code: int, said: str, output: Path) -> list[str]:
    """Say what is not as it must be after an error."""
    wrong = []
    errors = [line for line in said.splitlines() if line.startswith("vsr: error: ")]
    if code != 1 or len(errors) != 1 or "Traceback" in said or "unexpected" in said:
        wrong.append(f"exit code {code}: {said[-300:]}")
    if output.exists():
        wrong.append("an output in spite of the error")
    return wrong


def without(said: str, folder: Path) -> str:
    """Take the name of a temporary folder out of a message."""
    return said.replace(f"{folder}/", "")


def digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())

"""Runs the command on damaged clips and reports what it must never do.

    python tests/mutating.py WEIGHTS COUNT SEED CLIP...

The process forks for each clip, so that PyTorch is imported once. Writes one JSON object to stdout:
how often the command ended how, and each wrong: a signal, a hang, a traceback, an error that is not
one clear line, something left behind, an output that cannot be read. A wrong clip is kept.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av

import vsr.pipeline  # noqa: F401 - once, before the forks
from vsr.cli import main

LIMIT_SECONDS = 120
MUTATIONS = ("flip bits", "cut short", "cut the beginning", "swap blocks", "zeros", "swap atoms",
             "repeat a block", "garbage at the end", "change a length")  # fmt: skip


def mutate(data: bytes, kind: str, lot: random.Random) -> bytes:
    """Damage a file in one way, by lot."""
    found = bytearray(data)
    size = len(data)
    block = lot.choice([16, 256, 4096])
    one, two = (lot.randrange(max(1, size - block)) for _ in range(2))
    if kind == "flip bits":
        for _ in range(lot.choice([1, 10, 200])):
            found[lot.randrange(size)] ^= 1 << lot.randrange(8)
    elif kind == "cut short":
        del found[lot.randrange(size) :]
    elif kind == "cut the beginning":
        del found[: lot.randrange(size)]
    elif kind == "swap blocks":
        found[one : one + block], found[two : two + block] = (
            data[two : two + block], data[one : one + block],
        )  # fmt: skip
    elif kind == "zeros":
        found[one : one + block] = bytes(len(found[one : one + block]))
    elif kind == "swap atoms":
        atoms = top_level_atoms(data)
        lot.shuffle(atoms)
        found = bytearray(b"".join(atoms))
    elif kind == "repeat a block":
        found[one:one] = data[two : two + block]
    elif kind == "garbage at the end":
        found += lot.randbytes(block)
    else:  # change a length: a big-endian number somewhere in the headers
        at = lot.randrange(min(size - 4, 2000))
        found[at : at + 4] = lot.choice([0, 1, 255, 1 << 31, (1 << 32) - 1]).to_bytes(4, "big")
    return bytes(found)


def top_level_atoms(data: bytes) -> list[bytes]:
    """Cut an MP4 file at its outermost boxes; others at equal lengths."""
    atoms, at = [], 0
    while at + 8 <= len(data) and data[at + 4 : at + 8].isalnum():
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8:
            break
        atoms.append(data[at : at + size])
        at += size
    if len(atoms) < 2:
        step = len(data) // 4 + 1
        return [data[k : k + step] for k in range(0, len(data), step)]
    return atoms


def run(arguments: list[str]) -> tuple[int, str]:
    """Run the command in a child; return its exit code (-9 for a hang) and its stderr."""
    log = Path("stderr")
    child = os.fork()
    if child == 0:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        try:
            code = main(arguments)
        except BaseException as error:  # what would be a traceback
            os.write(2, f"Traceback: {error!r}\n".encode())
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    until = time.monotonic() + LIMIT_SECONDS
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            until += 3600
        time.sleep(0.005)


def what_is_wrong(code: int, said: str, output: Path) -> str | None:
    """Name what the command must not have done."""
    left = sorted(path.name for path in Path().iterdir() if path.suffix == ".partial")
    errors = [line for line in said.splitlines() if line.startswith("vsr: error: ")]
    if code < 0:
        return "hang" if code == -signal.SIGKILL else f"signal {-code}"
    if "Traceback" in said or "unexpected" in said:
        return "traceback"
    if left:
        return f"left {left}"
    if code == 0:
        try:
            with av.open(str(output)) as container:
                frames = sum(1 for _ in container.decode(video=0))
        except av.error.FFmpegError as error:
            return f"unreadable output: {error}"
        return None if frames else "no frame in the output"
    if output.exists():
        return "an output in spite of the error"
    if code != 1 or len(errors) != 1:
        return f"exit code {code} with {len(errors)} lines of error"
    return None


def report(weights: str, count: int, seed: int, clips: list[Path]) -> dict[str, Any]:
    """Mutate, run and judge."""
    codes = Counter[int]()
    wrong = []
    for index in range(count):
        lot = random.Random(f"{seed}/{index}")
        clip, kind = clips[index % len(clips)], MUTATIONS[index % len(MUTATIONS)]
        source, output = Path(f"in{clip.suffix}"), Path("out.mp4")
        source.write_bytes(mutate(clip.read_bytes(), kind, lot))
        command = ["upscale", str(source), "-o", str(output), "--weights", weights]
        command += ["--backend", "pytorch", "--threads", "1", "--preset", "ultrafast"]
        command += ["--crop", "0,0,32,32"]  # large clips would only take longer
        code, said = run(command)
        codes[code] += 1
        if found := what_is_wrong(code, said, output):
            kept = f"wrong_{index:03d}{clip.suffix}"
            shutil.copy(source, kept)
            wrong.append(f"{kept} ({clip.name}, {kind}): {found}; {said[-300:]}")
        for path in (source, output, Path("stderr")):
            path.unlink(missing_ok=True)
        shutil.rmtree("out.mp4.partial", ignore_errors=True)
    return {"codes": {str(code): times for code, times in codes.items()}, "wrong": wrong}


if __name__ == "__main__":
    weights, count, seed, *names = sys.argv[1:]
    found = report(weights, int(count), int(seed), [Path(name) for name in names])
    sys.stdout.write(json.dumps(found))

"""What weights and tables tell of how they were made: the command line and the commit."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path


def describe_command(module: str, argv: list[str] | None) -> str:
    """Return a command line for the metadata of weights: of absolute paths the last part alone.

    Where they lie on the machine that trains tells the reader of a published file nothing.

    Args:
        module: what `python -m` runs.
        argv: its arguments; None: those of this process.
    """
    arguments = []
    for argument in sys.argv[1:] if argv is None else argv:
        is_flag = argument.startswith("-")
        flag, equals, value = argument.partition("=") if is_flag else ("", "", argument)
        path = Path(value)
        arguments.append(flag + equals + (path.name if path.is_absolute() else value))
    return f"python -m {module} {shlex.join(arguments)}"


def describe_commit() -> str:
    """Return the commit of this checkout, or "unknown" outside one."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

"""What can go wrong, as one tree.

VSRError                  anything the user can act on; the command line prints it as one line
├── BackendUnavailable    the back end's library or hardware is missing
├── EngineBuildError      the back end refused the network
├── WeightsError          the weights file is damaged, foreign, or of another network
├── UnsupportedShape      a frame that the engine cannot take
│   └── OutOfMemory       not in the memory that is free; in parts perhaps
└── MediaError            the clip cannot be read, or the output cannot be written

A caller's bug is a `TypeError` or `ValueError`.
"""

from __future__ import annotations


class VSRError(Exception):
    """Root of all errors that a user can act on. The message is one line."""


class BackendUnavailable(VSRError):
    """A back end's library or hardware is missing."""


class EngineBuildError(VSRError):
    """A back end could not compile the network."""


class WeightsError(VSRError):
    """A weights file is damaged, foreign, or made for another network."""


class UnsupportedShape(VSRError):
    """A frame has a size or layout that the engine cannot take."""


class OutOfMemory(UnsupportedShape):
    """A frame does not fit into the memory that is free; it may do so in parts."""


class MediaError(VSRError):
    """A clip cannot be read, or the output cannot be written."""

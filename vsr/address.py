"""Addresses of live streams: what is one, how it is shown, and how its recording is called.

An address may hold a user's name and password, a stream key or a token. It is shown without them,
in every message and file name; only FFmpeg is told the whole.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "srt", "udp", "tcp")

_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.DOTALL)
_IN_TEXT = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")
_SHORTEST_SECRET = 4  # what is shorter may be a part of any word


class Address:
    """The URL of a live stream; `str` and `repr` show no secrets.

    Attributes:
        url: as it was given, for FFmpeg.
        scheme: in lower case.
        stem: of the file that it is recorded to, unless another is named: host and port.

    Raises:
        MediaError: its scheme is none of `SCHEMES`.
    """

    __slots__ = ("_secrets", "_shown", "scheme", "stem", "url")

    def __init__(self, url: str) -> None:
        match = _ADDRESS.fullmatch(url)
        self.scheme = match[1].lower() if match else ""
        self._shown, secrets = _without_secrets(url)
        if self.scheme not in SCHEMES:
            from engines.errors import MediaError  # with PyTorch behind it, for which --help waits

            raise MediaError(
                f"{self._shown} is no address of a live stream: known are "
                f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}"
            )
        self.url = url
        found = {url, *secrets, *map(unquote, secrets)}
        self._secrets = sorted(
            (secret for secret in found if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True
        )
        host = self._shown.partition("://")[2].removeprefix("***@").split("/")[0].split("?")[0]
        self.stem = re.sub(r"[^\w.-]+", "-", host).strip("-.")[:80] or "stream"

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"Address({self._shown!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def scrub(self, text: str) -> str:
        """Take out of a text what is secret in this address, and in any other."""
        for secret in self._secrets:
            text = text.replace(secret, self._shown if secret == self.url else "***")
        return scrub(text)


def is_address(text: str) -> bool:
    """Tell whether a text is the URL of anything, rather than the name of a file."""
    return _ADDRESS.fullmatch(text) is not None


def scrub(text: str) -> str:
    """Take what may be secret out of all addresses in a text."""
    return _IN_TEXT.sub(lambda match: _without_secrets(match[0])[0], text)


def _without_secrets(url: str) -> tuple[str, list[str]]:
    """Return a URL as it may be shown, and what was left out.

    Too much rather than too little: all before the last @, all after a ?, path segments that assign
    a value (as cameras have them), and the last segment for RTMP, which is the stream's key.
    """
    scheme, _, rest = url.partition("://")
    user, at, rest = rest.rpartition("@")
    secrets = [user, *user.split(":", 1)[1:]]
    shown = re.split(r"[?#]", rest, maxsplit=1)[0]
    query = rest[len(shown) + 1 :]
    secrets += [query, *(part.partition("=")[2] for part in query.split("&"))]
    host, *segments = shown.split("/")
    for index, segment in enumerate(segments):
        is_key = scheme.lower().startswith("rtmp") and index == len(segments) - 1 > 0
        if "=" in segment or (is_key and segment):
            secrets.append(segment)
            segments[index] = "***"
    shown = "/".join([host, *segments])
    return f"{scheme}://{'***@' * bool(at)}{shown}{'?***' * bool(query)}", secrets

"""A live stream on 127.0.0.1: an MPEG-TS clip, sent as often and as fast as a test wants.

Nothing here waits without a limit, and the server's thread ends with its `with` block.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
from conftest import write_clip

PACKET_BYTES = 188 * 7
WAIT_SECONDS = 40.0
"""longest wait of any test"""


def write_ts(
    path: Path,
    *,
    seconds: int = 1,
    first_seconds: int = 1000,
    size: tuple[int, int] = (38, 50),
    has_sound: bool = True,
) -> Path:
    """Write an MPEG-TS clip of 25 frames a second that begins somewhere."""
    clip = write_clip(
        path.with_suffix(".mkv"), pts=tuple(range(0, 90000 * seconds, 3600)),
        time_base=Fraction(1, 90000), size=size, audio_seconds=seconds * has_sound,
    )  # fmt: skip
    options = {"output_ts_offset": str(first_seconds)}
    with av.open(str(clip)) as source, av.open(str(path), "w", container_options=options) as ts:
        copies = {s.index: ts.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                ts.mux(packet)
    return path


class TcpServer:
    """Sends bytes to each that connects, one after the other, then closes the connection.

    Args:
        clips: what the first, second, ... connection gets; after the last nobody is served.
        seconds: that each clip is spread over.
        hold_seconds: to keep a connection open at its end, without a byte.
        hears: whether to wait for a request before each clip.

    Attributes:
        served: set when the first one has connected.
        requests: what was heard.
    """

    def __init__(
        self, *clips: bytes, seconds: float = 0.0, hold_seconds: float = 0.0, hears: bool = False
    ) -> None:
        self._clips, self._seconds, self._hold = clips, seconds, hold_seconds
        self._hears = hears
        self.requests: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.port = self._socket.getsockname()[1]
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.served, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> TcpServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Serve nobody any more."""
        self._ended.set()
        self._thread.join(5)
        self._socket.close()
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        for clip in self._clips:
            until = time.monotonic() + WAIT_SECONDS
            while True:
                if self._ended.is_set() or time.monotonic() > until:
                    return
                try:
                    connection, _ = self._socket.accept()
                except TimeoutError:
                    continue
                break
            self.served.set()
            with connection:
                connection.settimeout(5)
                self._send(connection, clip)
        self._socket.close()  # who connects from here on is refused

    def _send(self, connection: socket.socket, clip: bytes) -> None:
        pieces = [clip[at : at + PACKET_BYTES] for at in range(0, len(clip), PACKET_BYTES)]
        try:
            if self._hears:
                self.requests.append(connection.recv(1 << 16))
            for piece in pieces:
                connection.sendall(piece)
                if self._ended.wait(self._seconds / len(pieces)):
                    return
            self._ended.wait(self._hold)
        except OSError:  # the other side has had enough
            pass


_SDP = (
    b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=door\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=video 0 RTP/AVP 33\r\na=control:track0\r\n"
)


class RtspServer(TcpServer):
    """Plays MPEG-TS clips over RTSP, RTP in the same connection, to those who know the password.

    The user is `admin`, the password `geheim`. As much of RFC 2326 as FFmpeg asks for.
    """

    def __init__(self, *clips: bytes, seconds: float = 0.0) -> None:
        super().__init__(*clips, seconds=seconds)
        self.url = f"rtsp://admin:geheim@127.0.0.1:{self.port}/door"

    def _send(self, connection: socket.socket, clip: bytes) -> None:
        try:
            while (request := self._read(connection)) and not self._ended.is_set():
                self.requests.append(request)
                method = request.split(b" ", 1)[0]
                allowed = b"Authorization: Basic YWRtaW46Z2VoZWlt" in request
                connection.sendall(self._answer(request, allowed))
                if method == b"PLAY" and allowed:
                    super()._send(connection, _as_rtp(clip))
                    return
        except OSError:
            pass

    def _read(self, connection: socket.socket) -> bytes:
        request = b""
        while not request.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
            request += byte
        return request

    def _answer(self, request: bytes, allowed: bool) -> bytes:
        number = request.split(b"CSeq: ")[1].split(b"\r\n")[0]
        head, body = b"CSeq: " + number + b"\r\nSession: 1\r\n", b""
        if request.startswith(b"OPTIONS"):
            head += b"Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif not allowed:
            head += b'WWW-Authenticate: Basic realm="door"\r\n'
            return b"RTSP/1.0 401 Unauthorized\r\n" + head + b"\r\n"
        elif request.startswith(b"DESCRIBE"):
            body = _SDP
            head += b"Content-Type: application/sdp\r\nContent-Length: %d\r\n" % len(body)
        elif request.startswith(b"SETUP"):
            head += b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        return b"RTSP/1.0 200 OK\r\n" + head + b"\r\n" + body


def _as_rtp(clip: bytes) -> bytes:
    """Put MPEG-TS into RTP packets (RFC 2250), and those into RTSP's interleaved frames."""
    framed = b""
    for number, at in enumerate(range(0, len(clip), PACKET_BYTES)):
        packet = struct.pack(">BBHII", 0x80, 33, number, 0, 1) + clip[at : at + PACKET_BYTES]
        framed += b"$" + struct.pack(">BH", 0, len(packet)) + packet
    return framed


class HlsServer(ThreadingHTTPServer):
    """Plays a clip over HLS, live, again and again in segments of a second.

    Args:
        folder: for the segments.
        count: of them; after the last the playlist stands still.
    """

    daemon_threads = True

    def __init__(self, folder: Path, *, count: int) -> None:
        super().__init__(("127.0.0.1", 0), _HlsHandler)
        self.url = f"http://127.0.0.1:{self.server_port}/live.m3u8"
        self.began = time.monotonic()
        self.segments = [
            write_ts(folder / f"{number}.ts", first_seconds=1000 + number).read_bytes()
            for number in range(count)
        ]
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> HlsServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join(5)
        self.server_close()
        assert not self._thread.is_alive()

    def playlist(self) -> bytes:
        """Offer the three newest segments."""
        first = min(int(time.monotonic() - self.began), len(self.segments) - 3)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1"]
        lines += [f"#EXT-X-MEDIA-SEQUENCE:{first}"]
        lines += [f"#EXTINF:1.0,\n{number}.ts" for number in range(first, first + 3)]
        return "\n".join([*lines, ""]).encode()


class _HlsHandler(BaseHTTPRequestHandler):
    server: HlsServer
    timeout = 5

    def do_GET(self) -> None:
        name = self.path.strip("/")
        number = name.removesuffix(".ts")
        body = self.server.segments[int(number)] if number.isdigit() else self.server.playlist()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

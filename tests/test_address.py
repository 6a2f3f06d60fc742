"""Addresses: what is one, and that nothing secret in it is ever shown."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import MediaError
from vsr.address import Address, is_address, scrub

ROOT = Path(__file__).parents[1]

SECRET = {
    "rtsp://admin:geheim@camera.local:554/door": "rtsp://***@camera.local:554/door",
    "rtsp://admin:ge%40heim@camera/door": "rtsp://***@camera/door",
    "rtsp://admin:ge@heim@camera/door": "rtsp://***@camera/door",
    "rtsp://admin:ge/heim@camera/door": "rtsp://***@camera/door",
    "rtsp://admin:ge?heim@camera/door": "rtsp://***@camera/door",
    "rtsp://camera/user=admin_password=geheim_channel=1.sdp": "rtsp://camera/***",
    "http://camera/video.ts?token=geheim": "http://camera/video.ts?***",
    "https://camera/live.m3u8#geheim": "https://camera/live.m3u8?***",
    "srt://camera:9000?passphrase=geheim": "srt://camera:9000?***",
    "rtmp://camera/live/geheim": "rtmp://camera/live/***",
}


@pytest.mark.parametrize("url", SECRET)
def test_no_secret_is_shown(url):
    address = Address(url)
    for shown in (str(address), repr(address), f"{address}", address.stem):
        assert "heim" not in shown
    assert str(address) == SECRET[url]
    assert address.url == url


@pytest.mark.parametrize("url", SECRET)
def test_texts_of_others_are_scrubbed(url):
    address = Address(url)
    for text in (f"cannot open '{url}'", f"opening {url}, please wait", f"{url}: refused"):
        assert "heim" not in address.scrub(text)
    assert "heim" not in scrub(f"cannot open {url}")


def test_a_password_alone_is_scrubbed_as_it_was_written_and_as_it_was_meant():
    address = Address("rtsp://admin:ge%40heim@camera/door")
    assert address.scrub("wrong password ge@heim or ge%40heim") == "wrong password *** or ***"


def test_what_is_not_secret_is_shown():
    assert str(Address("udp://239.0.0.1:5000")) == "udp://239.0.0.1:5000"
    assert str(Address("RTSP://Camera/door/1")) == "RTSP://Camera/door/1"
    assert scrub("no address in here: a@b?c=d") == "no address in here: a@b?c=d"


@pytest.mark.parametrize(
    ("url", "stem"),
    [
        ("rtsp://a:b@camera.local:554/door", "camera.local-554"),
        ("rtsp://[fe80::1]:554/door", "fe80-1-554"),
        ("udp://@:5000", "5000"),
        ("udp://", "stream"),
        ("http://../..", "stream"),
        ("rtsp://" + "a" * 300, "a" * 80),
    ],
)
def test_a_recordings_name_is_host_and_port(url, stem):
    assert Address(url).stem == stem


def test_what_is_an_address():
    assert is_address("rtsp://camera/door")
    assert is_address("file:///clip.mp4")
    for name in ("clip.mp4", "a:b.mp4", "C:\\clip.mp4", "/tmp/x", "a/b://c", "://x", ""):
        assert not is_address(name)


@pytest.mark.parametrize("url", ["file:///clip.mp4", "ftp://user:geheim@host/clip.mp4"])
def test_other_schemes_are_refused_without_their_secrets(url):
    with pytest.raises(MediaError, match="known are rtsp://") as raised:
        Address(url)
    assert "geheim" not in str(raised.value)


def test_equal_addresses_are_equal_and_survive_a_copy():
    address = Address("rtsp://a:b@camera/door")
    assert copy.deepcopy(address) == address
    assert len({address, Address(address.url)}) == 1
    assert address != Address("rtsp://a:c@camera/door")


def test_not_even_a_wrong_command_line_shows_a_secret():
    done = subprocess.run(
        [sys.executable, "-m", "vsr", "rtsp://admin:geheim@camera/door"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "geheim" not in done.stdout + done.stderr
    assert "***@camera" in done.stderr

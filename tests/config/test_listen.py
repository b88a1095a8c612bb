from pathlib import Path

import pytest

from mgpu.config.listen import TcpAddress, UnixAddress, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7070", TcpAddress("127.0.0.1", 7070)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("gpu-box.example.org:80", TcpAddress("gpu-box.example.org", 80)),
        ("unix:/run/mgpu/mgpu.sock", UnixAddress(Path("/run/mgpu/mgpu.sock"))),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, address: object) -> None:
    assert parse(text) == address
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be HOST:PORT"),
        ("7070", "must be HOST:PORT"),
        (":7070", "must be HOST:PORT"),
        ("127.0.0.1", "must be HOST:PORT"),
        ("127.0.0.1:", "must be HOST:PORT"),
        ("127.0.0.1:http", "must be HOST:PORT"),
        ("127.0.0.1:-1", "must be HOST:PORT"),
        ("127.0.0.1:\u0667", "must be HOST:PORT"),
        ("127.0.0.1:65536", "port 65536 is beyond 65535"),
        ("::1:7070", "stands in brackets"),
        ("[::g]:7070", "is not an IPv6 address"),
        ("[127.0.0.1]:7070", "is not an IPv6 address"),
        ("http://localhost:7070", "stands in brackets"),
        ("127.1:7070", "must be an IP address or a host name"),
        ("12:30", "must be an IP address or a host name"),
        ("0x7f000001:7070", "must be an IP address or a host name"),
        ("300.0.0.1:7070", "must be an IP address or a host name"),
        ("*:7070", "must be an IP address or a host name"),
        ("a host:7070", "must be an IP address or a host name"),
        ("unix:", "the absolute path of a socket"),
        ("unix:run/mgpu.sock", "the absolute path of a socket"),
        ("unix:/run/", "the absolute path of a socket"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_what_is_no_address_is_told_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("[", r"\[")):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:1",
        "127.9.9.9:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
        "localhost:1",
        "LocalHost:1",
        "unix:/s",
    ],
)
def test_loopback_is_not_exposed(text: str) -> None:
    assert not parse(text).exposed


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0:1",
        "192.168.1.5:1",
        "[::]:1",
        "[fe80::1%eth0]:1",
        "[::ffff:10.0.0.1]:1",
        "localhost.example.org:1",
        "localhost.localdomain:1",
        "gpu-box:1",
        "no-such-name.invalid:1",
    ],
)
def test_everything_else_is_exposed_and_no_name_is_resolved(text: str) -> None:
    assert parse(text).exposed

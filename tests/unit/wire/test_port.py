"""A service in a guest waits for its port and for its host, and mixes no two connections."""

from __future__ import annotations

import os
import pty
import tty
from pathlib import Path

import pytest

from skerry.wire.port import PAUSE_S, connections


class StopWaiting(Exception):
    """The test has seen enough."""


def terminal() -> tuple[int, Path]:
    """Make a device that, like a port, is opened by name and says when its host has gone."""
    host, guest = pty.openpty()
    tty.setraw(guest)
    path = Path(os.ttyname(guest))
    os.close(guest)
    return host, path


def test_a_port_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    """One look, one pause, and again; when it is there it is opened."""
    host, path = terminal()
    link, pauses = tmp_path / "port", list[float]()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            link.symlink_to(path)

    found = connections(link, pause)
    try:
        connection = next(found)
        assert pauses == [PAUSE_S] * 3
        os.write(host, b"hello")
        assert connection.read() == b"hello"
        connection.write(bytearray(b"answer"))
        assert os.read(host, 100) == b"answer"
    finally:
        os.close(host)


def test_each_coming_of_the_host_is_a_connection_of_its_own(tmp_path: Path) -> None:
    """When the host goes, reading ends; the next one is found at the same name."""
    link = tmp_path / "port"
    host, path = terminal()
    link.symlink_to(path)
    found = connections(link, lambda _: None)
    os.write(host, b"first")
    one = next(found)
    assert one.read() == b"first"
    os.close(host)
    assert one.read() == b""
    link.unlink()
    host, path = terminal()
    link.symlink_to(path)
    os.write(host, b"second")
    assert next(found).read() == b"second"
    os.close(host)


def test_a_port_that_is_closed_is_not_left_open(tmp_path: Path) -> None:
    """Its descriptor goes before the next is opened."""
    host, path = terminal()
    link = tmp_path / "port"
    link.symlink_to(path)

    def pause(_: float) -> None:
        raise StopWaiting

    found = connections(link, pause)
    port = next(found).port
    with pytest.raises(StopWaiting):
        next(found)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(port)
    os.close(host)

"""What a caller is told where nobody listens."""

from __future__ import annotations

import fcntl
import socket
from pathlib import Path

import pytest

from skerry.control import client as module
from skerry.control.client import Client, NotRunning
from skerry.node import paths


def test_a_service_that_is_started_again_is_told_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both leave a socket at which nobody listens; the supervisor's lock makes the difference."""
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path))
    monkeypatch.setattr(module, "RESTART_S", 0.05)
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(NotRunning, match="no system is running here"):
        Client(path)
    lock = paths.make_private(paths.state_dir()) / paths.LOCK
    with lock.open("w") as held:
        with pytest.raises(NotRunning, match="no system is running here"):
            Client(path)
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(NotRunning, match="being started") as caught:
            Client(path)
        assert caught.value.fix == "try again in a moment"

"""Where a node keeps its files: only in places that are its user's own."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from skerry.control import client as client_module
from skerry.control.client import Client, NoService
from skerry.errors import SkerryError
from skerry.node import paths

OTHER = 4001


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the share be where an ordinary user without a runtime directory has it."""
    for name in ("SKERRY_HOME", "SKERRY_SHARE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    share = tmp_path / "skerry-4000"
    monkeypatch.setattr(paths, "share_dir", lambda: share)
    monkeypatch.setattr(paths, "run_dir", lambda: share / "run")
    return share


def lend(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a path look as if it were another user's; no test needs root for that."""
    lstat = Path.lstat

    def lying(self: Path) -> os.stat_result:
        found = lstat(self)
        if self != path:
            return found
        return os.stat_result((*found[:4], OTHER, *found[5:]))

    monkeypatch.setattr(Path, "lstat", lying)


def test_a_place_in_a_share_of_another_user_is_refused(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither made in nor called at, though the place itself is one's own; else it is (control)."""
    assert paths.make_shared(paths.run_dir()) == own / "run"
    assert paths.control_socket() == own / "run/control.sock"
    lend(own, monkeypatch)
    with pytest.raises(SkerryError, match=f"skerry-4000 belongs to uid {OTHER}"):
        paths.make_shared(paths.run_dir())
    with pytest.raises(SkerryError, match=f"skerry-4000 belongs to uid {OTHER}"):
        paths.control_socket()


def test_a_share_that_is_a_link_is_refused_and_an_open_one_is_closed(
    own: Path, tmp_path: Path
) -> None:
    """Others could write in it; and a link leads where somebody else may have made it lead."""
    own.mkdir()
    own.chmod(0o777)
    paths.make_shared(paths.roots_dir())
    assert own.stat().st_mode & 0o777 == 0o755
    own.rename(tmp_path / "elsewhere")
    own.symlink_to(tmp_path / "elsewhere")
    for use in (paths.control_socket, lambda: paths.make_shared(paths.roots_dir())):
        with pytest.raises(SkerryError, match="is a symbolic link"):
            use()


def test_a_run_directory_of_another_user_is_not_called_at(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no share lies above it; one that is not there yet says nothing."""
    assert paths.control_socket() == own / "run/control.sock"
    paths.make_shared(paths.run_dir())
    lend(own / "run", monkeypatch)
    with pytest.raises(SkerryError, match=f"run belongs to uid {OTHER}"):
        paths.control_socket()


@pytest.mark.parametrize(("peer", "served"), [(0, True), (OTHER, False), (OTHER + 1, True)])
def test_a_client_talks_to_the_directorys_owner_or_root_only(
    peer: int, served: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who listens is told by the kernel."""
    path, stat = tmp_path / "control.sock", Path.stat

    def owned(self: Path, **how: bool) -> os.stat_result:
        found = stat(self, **how)
        return os.stat_result((*found[:4], OTHER + 1, *found[5:])) if self == tmp_path else found

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        monkeypatch.setattr(Path, "stat", owned)
        monkeypatch.setattr(client_module, "peer_uid", lambda _: peer)
        if served:
            Client(path).sock.close()
        else:
            with pytest.raises(NoService, match=f"uid {OTHER} listens"):
                Client(path)

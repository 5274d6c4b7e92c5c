"""Identities are given once, belong to nobody else, and are refused at the end of the range."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from skerry.jail import identity
from skerry.jail.errors import IdentitiesUsed, JailError

START = 1_900_000_000


def test_an_identity_is_given_once() -> None:
    """A uid never comes back within the life of a pool, nor those that are skipped."""
    pool = identity.IdentityPool(START, START + 3, gid_shift=10)
    first = pool.take("a")
    assert (first.uid, first.gid) == (START, START + 10)
    pool.skip(START)
    assert pool.take("b").uid == START + 1
    pool.skip(START + 1)
    assert pool.take("c").uid == START + 2
    with pytest.raises(IdentitiesUsed, match="no identity left for d; restart the node"):
        pool.take("d")
    pool.close()


def test_a_node_that_is_started_again_keeps_its_block() -> None:
    """Whoever holds the lock keeps the block from others, also while there is no node."""
    end = START + 2 * identity.BLOCK
    first = identity.IdentityPool(START, end)
    held = os.dup(first.fileno())
    taken = first.take("x").uid
    first.close()  # the node is dead; somebody else starts before the next one
    other = identity.IdentityPool(START, end)
    again = identity.IdentityPool(START, end, held=held)
    again.skip(taken)
    assert again.take("y").uid == taken + 1
    assert other.take("z").uid == START + identity.BLOCK
    other.close()
    again.close()


def test_two_nodes_use_different_blocks() -> None:
    """A second pool of the same range gets the next block, a third none; after a close, one."""
    end = START + 2 * identity.BLOCK
    a, b = identity.IdentityPool(START, end), identity.IdentityPool(START, end)
    assert b.take("x").uid - a.take("x").uid == identity.BLOCK
    with pytest.raises(IdentitiesUsed, match="other nodes"):
        identity.IdentityPool(START, end)
    a.close()
    identity.IdentityPool(START, end).close()
    b.close()


def test_ranges_are_read_and_rubbish_skipped(tmp_path: Path) -> None:
    """Lines that are not NAME:FIRST:COUNT count as nothing."""
    file = tmp_path / "subuid"
    file.write_text("a:100:10\n\n# c\nb:x:1\nb:500:5\nlong:1\n")
    assert identity.subordinate_ranges(file) == [(100, 110), (500, 505)]
    assert identity.subordinate_ranges(file, {"b"}) == [(500, 505)]
    assert identity.subordinate_ranges(tmp_path / "none") == []


def test_a_range_of_somebody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that overlaps a user or a subordinate range names them; a free one is used."""
    file = tmp_path / "subuid"
    file.write_text(f"guest:{START + 50}:100\n")
    monkeypatch.setattr(identity, "SUBUID", file)
    monkeypatch.setattr(identity, "SUBGID", tmp_path / "none")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(JailError, match=r"belong to .*subuid"):
        identity.open_pool(START, START + 51)
    somebody = pwd.getpwnam("nobody").pw_uid
    with pytest.raises(JailError, match="belong to user "):
        identity.open_pool(somebody, somebody + 1)
    pool = identity.open_pool(START, START + 50)
    assert pool is not None
    pool.close()


def test_the_default_range_moves_out_of_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first default range is somebody's, the next free one is used."""
    file = tmp_path / "subuid"
    file.write_text("guest:100000:65536\n")
    monkeypatch.setattr(identity, "SUBUID", file)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    pool = identity.open_pool()
    assert pool is not None
    assert pool.take("x").uid >= identity.DEFAULT_END
    pool.close()


def test_an_ordinary_user_uses_subordinate_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ranges, mapped identities; without, no pool; without newuidmap, the package's name."""
    uids, gids = tmp_path / "subuid", tmp_path / "subgid"
    monkeypatch.setattr(identity, "SUBUID", uids)
    monkeypatch.setattr(identity, "SUBGID", gids)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert identity.open_pool() is None
    uids.write_text(f"54321:{START}:10\n")
    gids.write_text(f"54321:{START + 5}:9\n")
    pool = identity.open_pool()
    assert pool is not None
    taken = pool.take("x")
    assert str(taken) == f"sub:{taken.uid}:{taken.uid + 5}"
    assert str(identity.own()) == "own"
    pool.close()
    monkeypatch.setattr(identity, "NEWUIDMAP", tmp_path / "newuidmap")
    with pytest.raises(JailError, match="install the package uidmap"):
        identity.open_pool()

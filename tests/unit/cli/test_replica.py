"""What `skerry audit replica` and `ps` show of the audit replica, and who may ask."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from skerry.audit.chain import GENESIS
from skerry.cli import audit as audit_module
from skerry.cli import show as show_module
from skerry.errors import Denied, SkerryError, StateError
from skerry.node.node import Node
from skerry.node.replica import HELPER, replication_of
from skerry.wire.control import ReplicaRecords
from tests.unit.audit.trails import made_segments, records

HASH = "ab" * 32


def answers(monkeypatch: pytest.MonkeyPatch, module: Any, **found: Any) -> None:
    """Have calls answered without a node."""
    monkeypatch.setattr(module, "ask", lambda call: found[type(call).__name__])


def status(**changes: Any) -> dict[str, Any]:
    """Return how a replica stands, as the node says it."""
    return {
        "n": 90,
        "hash": HASH,
        "first": 5,
        "state": "whole",
        "gaps": [],
        "more_gaps": 0,
        "left_out": 0,
        "reason": "",
        "lag": 3,
        "unfed": "",
        "trail": {"n": 100, "hash": "cd" * 32},
        **changes,
    }


def test_the_head_of_the_replica_is_shown_with_all_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line each; a whole one has three."""
    run = CliRunner().invoke
    answers(monkeypatch, audit_module, Replica=status())
    done = run(audit_module.audit, ["replica"])
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        f"head     record 90  {HASH}",
        "keeps    from record 5 on",
        "behind   10 records",
    ]
    lacking = status(gaps=[[7, 9]], more_gaps=2, left_out=4, unfed="a line \x1b is no record")
    answers(monkeypatch, audit_module, Replica=lacking)
    assert run(audit_module.audit, ["replica"]).output.splitlines()[3:] == [
        "gap      records 7 to 9 never came",
        "gap      and 2 more",
        "full     4 records found no room",
        r"unfed    a line \x1b is no record",
    ]


def test_a_broken_replica_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of itself is escaped."""
    broken = status(state="broken", reason="record 9 \x1b[2J is not the one")
    answers(monkeypatch, audit_module, Replica=broken)
    done = CliRunner().invoke(audit_module.audit, ["replica"])
    assert isinstance(done.exception, SkerryError)
    assert "record 9" in done.exception.message
    assert "\x1b" not in str(done.exception)
    assert "evidence" in done.exception.fix


def test_a_trail_is_held_against_the_replica_s_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole one is proven, one that ends before is not; a head of one's own excludes it."""
    (lines,) = made_segments([9])
    whole, short = tmp_path / "whole.log", tmp_path / "short.log"
    whole.write_bytes(b"".join(lines))
    short.write_bytes(b"".join(lines[:6]))
    answers(monkeypatch, audit_module, Replica=status(n=8, hash=records(lines)[7].hash))
    run = CliRunner().invoke
    good = run(audit_module.audit, ["verify", "--replica", "--file", str(whole)])
    assert good.exit_code == 0
    assert "1 of them are behind the head" in good.output
    bad = run(audit_module.audit, ["verify", "--replica", "--file", str(short)])
    assert isinstance(bad.exception, SkerryError)
    assert "ends before the head" in bad.exception.message
    both = run(audit_module.audit, ["verify", "--replica", "--head", HASH])
    assert both.exit_code == 2


@pytest.mark.parametrize(
    ("stands", "words"),
    [
        (status(n=0, hash=GENESIS, state="empty", first=0), "has no record yet"),
        (status(state="broken", reason="record 9 is not the one"), "record 9 is not the one"),
    ],
    ids=["empty", "broken"],
)
def test_a_replica_that_vouches_for_nothing_proves_no_trail(
    stands: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever head it names, an error says why; the control: with its gaps named, one with gaps
    does."""
    (lines,) = made_segments([9])
    path = tmp_path / "whole.log"
    path.write_bytes(b"".join(lines))
    verify = ["verify", "--replica", "--file", str(path)]
    known = {} if stands["hash"] == GENESIS else {"n": 8, "hash": records(lines)[7].hash}
    answers(monkeypatch, audit_module, Replica=stands | known)
    done = CliRunner().invoke(audit_module.audit, verify)
    assert isinstance(done.exception, SkerryError)
    assert words in done.exception.message
    good = {"n": 8, "hash": records(lines)[7].hash, "state": "gaps", "gaps": [[2, 3]]}
    answers(monkeypatch, audit_module, Replica=stands | good)
    done = CliRunner().invoke(audit_module.audit, verify)
    assert done.exit_code == 0
    assert "the replica never had records 2 to 3" in done.output


def gives(monkeypatch: pytest.MonkeyPatch, *files: bytes) -> list[int]:
    """Have the replica give these files, one for each call; return behind what it was asked."""
    asked: list[int] = []

    def ask(call: ReplicaRecords) -> bytes:
        asked.append(call.after)
        return files[len(asked) - 1] if len(asked) <= len(files) else b""

    monkeypatch.setattr(audit_module, "ask", ask)
    return asked


def test_what_a_replica_keeps_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """File by file, byte for byte as it was recorded; a line that is no record is left out."""
    first, second = made_segments([5, 4])
    run = CliRunner().invoke
    words = ["export", "--replica", "--format", "json"]
    asked = gives(monkeypatch, b"".join(first), b"".join(second))
    done = run(audit_module.audit, words)
    assert done.exit_code == 0
    assert done.output.encode() == b"".join(first + second)
    assert asked == [0, 1, 6]
    gives(monkeypatch, first[0] + b"\x1b[2J\n")
    done = run(audit_module.audit, words)
    assert isinstance(done.exception, SkerryError)
    assert "the audit replica: 1 broken records were left out" in done.exception.message
    assert first[0].decode() in done.output
    assert "\x1b" not in done.output
    assert run(audit_module.audit, [*words, "--file", "x"]).exit_code == 2


def test_a_replica_that_gives_no_end_of_records_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same file again, no record at its begin, or more than it can keep."""
    (lines,) = made_segments([3])
    words = ["export", "--replica", "--format", "json"]
    for files in ([lines[0], lines[0]], [b"x\n"]):
        gives(monkeypatch, *files)
        done = CliRunner().invoke(audit_module.audit, words)
        assert isinstance(done.exception, SkerryError)
        assert "is no more of it" in done.exception.message
    monkeypatch.setattr(audit_module, "MAX_EXPORT", len(lines[0]) + 10)
    gives(monkeypatch, lines[0], lines[1])
    done = CliRunner().invoke(audit_module.audit, words)
    assert isinstance(done.exception, SkerryError)
    assert "behind record 1 is no more of it" in done.exception.message


def test_ps_says_that_nothing_waits_for_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of the manager that what needs it is denied."""
    for helper, words in ((HELPER, "nothing waits for it"), ("policy manager", "is denied")):
        answers(monkeypatch, show_module, Ps=[], Health=[{"helper": helper, "state": "lost"}])
        done = CliRunner().invoke(show_module.ps)
        assert f"the {helper} is lost: " in done.output
        assert words in done.output


def test_only_the_owner_asks_for_the_replica() -> None:
    """Another operator is denied before anything is looked up; a system without one says so."""
    node = cast(Node, SimpleNamespace(helpers={}))
    with pytest.raises(Denied, match="owner's"):
        replication_of(node, os.getuid() + 1)
    with pytest.raises(StateError, match="no audit replica"):
        replication_of(node, os.getuid())

"""`skerry policy replay`: a real trail's decisions again, under the same and another policy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from skerry.audit.record import Record
from skerry.node.replay import Answered, Replay
from skerry.policy.source import load_stack
from tests.support.cli import Cli
from tests.support.simulated import POLICY, small_node


@pytest.fixture(scope="module")
def used() -> Iterator[tuple[Cli, Path]]:
    """A node that has started, bound, refused, stopped and killed; and its trail."""
    with small_node() as cli:
        cli.denied("start", "blue")
        cli.denied("connect", "clerk", "broker")
        cli.ok("kill", "red")
        cli.ok("kill", "clerk")
        cli.ok("start", "blue")
        (trail,) = cli.home.rglob("audit.log")
        yield cli, trail


def replayed(cli: Cli, trail: Path, policy: str, name: str) -> list[dict[str, object]]:
    """Replay a trail under a policy given as text."""
    path = cli.home / name
    path.write_text(policy)
    rows = cli.rows("policy", "replay", str(trail), "--policy", str(path))
    return [dict(row) for row in rows]


def test_under_the_same_policy_every_decision_is_the_same(used: tuple[Cli, Path]) -> None:
    """Starts, binds and refusals, the wall's included, come out as they were."""
    cli, trail = used
    rows = replayed(cli, trail, POLICY, "same.toml")
    assert len(rows) >= 10
    assert [row for row in rows if row["before"] is not row["after"]] == []
    assert {row["before"] for row in rows} == {True, False}
    assert {"domain_create", "channel_two_way"} <= {str(row["hook"]) for row in rows}
    assert cli.ok("policy", "replay", str(trail), "--policy", str(cli.home / "same.toml")) == ""


def test_without_the_wall_the_refused_start_would_be_allowed(used: tuple[Cli, Path]) -> None:
    """Exactly one decision changes: blue's start beside red."""
    cli, trail = used
    wall = POLICY[POLICY.index("[[chinese-wall.conflicts]]") : POLICY.index("[labels.system]")]
    rows = replayed(cli, trail, POLICY.replace(wall, ""), "open.toml")
    changed = [row for row in rows if row["before"] is not row["after"]]
    assert [(row["hook"], row["after"]) for row in changed] == [("domain_create", True)]
    text = cli.ok("policy", "replay", str(trail), "--policy", str(cli.home / "open.toml"))
    assert "denied, now allowed: domain_create" in text


def test_a_label_that_is_gone_is_denied(used: tuple[Cli, Path]) -> None:
    """What named the broker is now denied, with the code of an unknown label."""
    cli, trail = used
    rows = replayed(cli, trail, POLICY.replace("[labels.broker]", "[labels.dealer]"), "gone.toml")
    changed = [row for row in rows if row["before"] and not row["after"]]
    assert changed
    assert all("broker" in json.dumps(row["parties"]) for row in changed)
    assert {row["code"] for row in changed} == {"LABEL-UNKNOWN"}


def test_a_broken_record_is_counted_and_the_rest_is_asked(
    used: tuple[Cli, Path], tmp_path: Path
) -> None:
    """One altered line: exit code 1, and every other decision is still there."""
    cli, trail = used
    lines = trail.read_bytes().splitlines(keepends=True)
    altered = next(n for n, line in enumerate(lines) if b'"event":"allow"' in line)
    lines[altered] = lines[altered].replace(b'"event":"allow"', b'"event":"deny"')
    copy = tmp_path / "audit.log"
    copy.write_bytes(b"".join(lines))
    (cli.home / "same.toml").write_text(POLICY)
    words = ("policy", "replay", str(copy), "--policy", str(cli.home / "same.toml"), "--json")
    done = cli.run(*words)
    assert done.returncode == 1
    assert "1 broken record left out" in done.stderr
    whole = cli.rows("policy", "replay", str(trail), "--policy", str(cli.home / "same.toml"))
    answers = [row for line in done.stdout.splitlines() if "hook" in (row := json.loads(line))]
    assert len(answers) == len(whole) - 1


def record(number: int, event: str, **fields: object) -> Record:
    """Make a record; its chain is of no concern here."""
    return Record(number, "", 0, "", event, fields, "")


def asked(policy: Path, *records: Record) -> tuple[list[Answered], int]:
    """Replay some records."""
    replay = Replay(load_stack([policy]))

    async def each() -> list[Answered]:
        answers = [await replay.ask(one) for one in records]
        return [answer for answer in answers if answer is not None]

    return asyncio.run(each()), replay.skipped


def start(number: int, label: str, event: str = "allow") -> Record:
    """A start of a domain that is called as its label."""
    parties: Mapping[str, str] = {"operator": "system", "domain": label}
    return record(number, event, hook="domain_create", domain=label, parties=dict(parties))


def test_starts_are_asked_beside_what_ran_then(tmp_path: Path) -> None:
    """Blue beside red is refused, after red's end or the node's it is not; a relabel moves red."""
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    red, blue = start(1, "red"), start(3, "blue", "deny")
    ended = record(2, "ended", domain="red", label="red")
    relabel = record(
        2, "allow", hook="domain_relabel", domain="red",
        parties={"operator": "system", "domain": "red", "new": "broker"},
    )  # fmt: skip
    for between, after in (
        ((), False), ((ended,), True), ((record(2, "down"),), True), ((relabel,), True),
        ((record(2, "ended", domain="blue"),), False),
    ):  # fmt: skip
        answers, _ = asked(path, red, *between, blue)
        assert answers[-1].after is after


def test_what_is_touched_counts_for_what_follows(tmp_path: Path) -> None:
    """With history, the broker that dealt with red does not deal with blue."""
    path = tmp_path / "policy.toml"
    path.write_text(POLICY.replace('name = "rivals"', 'name = "rivals"\nhistory = true'))

    def bind(number: int, one: str) -> Record:
        parties = {"source": one, "sink": "broker"}
        return record(number, "allow", hook="channel_two_way", parties=parties)

    answers, _ = asked(path, bind(1, "red"), bind(2, "blue"))
    assert [answer.after for answer in answers] == [True, False]
    assert asked(path, bind(2, "blue"))[0][0].after


def test_what_no_policy_decided_is_counted_and_not_asked(tmp_path: Path) -> None:
    """A limit's refusal, a record without parties or with a wrong shape."""
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    odd = (
        record(1, "deny", hook="domain_create", why={"code": "LIMIT-REACHED"}),
        record(2, "deny", hook="no_such_hook", parties={"source": "red"}),
        record(3, "deny", hook=["x"], parties={"source": "red"}),
        record(4, "deny", hook="channel_two_way", parties={"source": 3}),
        record(5, "deny", hook="channel_two_way", parties={"source": "red"}),
        record(6, "note", anything=1),
    )
    assert asked(path, *odd) == ([], 5)

"""`skerry policy replay` of a trail in which booleans were set: they are set in the replay too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from skerry.audit.record import Record
from skerry.errors import InputError
from skerry.node.replay import Replay
from skerry.policy.source import load_stack
from tests.support.cli import Cli
from tests.support.simulated import write_system
from tests.unit.control.test_calls import LOCKDOWN, PERMITTED

POLICY = PERMITTED.replace("allow dom0_t dom_t:domain { create unpause getdomaininfo };",
                           "allow dom0_t dom_t:domain { create unpause destroy getdomaininfo };\n"
                           "allow dom0_t dom0_t:event send;")  # fmt: skip


@pytest.fixture(scope="module")
def used() -> Iterator[tuple[Cli, str, Path]]:
    """A node on which a boolean was set, tried, set by an alarm and by another policy's load."""
    cli = Cli()
    try:
        cli.ok("up", write_system(cli.home, LOCKDOWN, POLICY), "--detach")
        policy = str(cli.home / "policy.toml")
        cli.ok("policy", "set-boolean", "bridged=0", "--dry-run")
        cli.ok("connect", "a", "b", "--name", "one")
        cli.ok("policy", "set-boolean", "bridged=0")
        cli.denied("connect", "a", "b", "--name", "two")
        cli.ok("policy", "set-boolean", "bridged=1")
        cli.ok("connect", "a", "b", "--name", "three")
        cli.ok("alarm", "lockdown")
        cli.denied("connect", "a", "b", "--name", "four")
        cli.ok("policy", "load", policy)
        cli.ok("connect", "a", "b", "--name", "five")
        (trail,) = cli.home.rglob("audit.log")
        yield cli, policy, trail
    finally:
        cli.down()


def changed(cli: Cli, *words: str) -> list[tuple[str, bool]]:
    """Return the hook and the new answer of each decision that comes out otherwise."""
    rows = cli.rows("policy", "replay", *words)
    assert {row["before"] for row in rows} == {True, False}
    return [(row["hook"], row["after"]) for row in rows if row["before"] is not row["after"]]


def test_booleans_that_were_set_are_set_in_the_replay(used: tuple[Cli, str, Path]) -> None:
    """By a command, by an alarm, and back by a load: under the same policy nothing changes."""
    cli, policy, trail = used
    assert changed(cli, str(trail), "--policy", policy) == []


def test_a_boolean_of_the_command_line_holds_all_through(used: tuple[Cli, str, Path]) -> None:
    """Off, what was connected is refused, at `up` too; on, what was refused is not."""
    cli, policy, trail = used
    words = (str(trail), "--policy", policy, "--boolean")
    assert set(changed(cli, *words, "bridged=0")) == {("channel_two_way", False)}
    assert changed(cli, *words, "bridged=1") == [("channel_two_way", True)] * 2
    wrong = cli.run("policy", "replay", *words, "bridge=1")
    assert wrong.returncode == 2
    assert "bridge" in wrong.stderr


def test_a_policy_without_the_boolean_is_asked_as_it_is(used: tuple[Cli, str, Path]) -> None:
    """What it says of the boolean's name is nobody's concern: two refusals are none any more."""
    cli, _, trail = used
    other = cli.home / "other.conf"
    text = POLICY.replace("bool bridged true;", "").replace("if (bridged) {\n", "")
    other.write_text(text.replace("map_write };\n}\n", "map_write };\n"))
    assert changed(cli, str(trail), "--policy", str(other)) == [("channel_two_way", True)] * 2


def record(number: int, event: str, **fields: object) -> Record:
    """Make a record; its chain is of no concern here."""
    return Record(number, "", 0, "", event, fields, "")


OPERATOR, DOMAIN = "sys_u:sys_r:dom0_t", "sys_u:sys_r:dom_t"


def setting(hook: str = "policy_setbool", **fields: object) -> Record:
    """An allowed change of policy."""
    parties = {"operator": OPERATOR, "security": "security"}
    about = {"dry_run": False, "policy": "digest", **fields}
    return record(1, "allow", hook=hook, parties=parties, **about)


LOADED = record(2, "loaded")


@pytest.mark.parametrize(
    ("records", "after"),
    [((), True),
     ((setting(booleans={"bridged": False}), LOADED), False),
     ((setting(change="bridged=0"), LOADED), False),  # a trail of before
     ((setting(booleans={"bridged": False}),), True),  # not in force yet
     ((setting(booleans={"bridged": False}, dry_run=True), LOADED), True),
     ((setting(booleans={"bridged": False}), record(2, "not-loaded"), LOADED), True),
     ((setting(booleans={"bridged": False}), record(2, "restarted", policy="digest")), False),
     ((setting(booleans={"bridged": False}), record(2, "restarted", policy="other")), True),
     ((setting(booleans={"bridged": False}), LOADED, record(3, "restarted", policy="x")), False),
     ((setting(booleans={"bridged": False}), LOADED, record(3, "up")), True),
     ((setting(booleans={"bridged": False}), LOADED,
       setting("policy_load", booleans={}), LOADED), True),
     ((setting(booleans={"bridged": 0, "x": False}), LOADED), True)],
)  # fmt: skip
def test_a_boolean_is_set_from_where_it_is_in_force(
    records: Sequence[Record], after: bool, tmp_path: Path
) -> None:
    """Neither a dry run nor a change that did not come into force; a restart keeps it."""
    path = tmp_path / "policy.conf"
    path.write_text(POLICY)
    parties: Mapping[str, str] = {"source": DOMAIN, "sink": DOMAIN}
    bind = record(9, "deny", hook="channel_two_way", parties=dict(parties))
    replay = Replay(load_stack([path]))

    async def ask() -> bool:
        answers = [await replay.ask(one) for one in (*records, bind)]
        assert answers[-1] is not None
        return answers[-1].after

    assert asyncio.run(ask()) is after


def test_a_boolean_that_the_policy_lacks_can_not_be_fixed(tmp_path: Path) -> None:
    """Its name is an error that says which there are."""
    path = tmp_path / "policy.conf"
    path.write_text(POLICY)
    with pytest.raises(InputError, match="no boolean x; it has: bridged"):
        Replay(load_stack([path]), {"x": True})

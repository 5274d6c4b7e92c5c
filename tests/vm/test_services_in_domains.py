"""The policy manager and the audit replica in guests of their own, and what happens without them.

The file's domains are simulated, so that the two guests are all that boots.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skerry.node.services import ANSWER_S
from tests.fault.test_service import process, wait_for, works
from tests.support.cli import Cli
from tests.support.simulated import POLICY, SYSTEM, write_system

MANAGER, AUDIT = "policy-manager", "audit"
ACCEPT = '\n[jail]\naccept-missing = ["cgroup", "swap"]\n'
HOMES = '\npolicy-manager = "domain"\naudit = "domain"\n'
BACK_S = 90.0
"""How long a guest that was killed may take to be back, on a busy machine."""


def system(homes: str = HOMES) -> str:
    """Return the small system with the node's own domains."""
    head, rest = SYSTEM.split("\n", 1)
    return f"{head}{homes}{rest}{ACCEPT}"


@pytest.fixture(scope="module")
def node() -> Iterator[Cli]:
    """The system, running; each test leaves both guests as they were."""
    cli = Cli()
    try:
        cli.ok("up", write_system(cli.home, system()), "--detach")
        yield cli
    finally:
        cli.down()


def qemu(cli: Cli, name: str) -> int:
    """Return the process of a domain's QEMU, 0 if there is none."""
    for pid, line in cli.processes().items():
        program, *words = line.split()
        if program.endswith("qemu-system-x86_64") and name in words[1:2]:
            return pid
    return 0


def row(cli: Cli, name: str) -> dict[str, Any]:
    """Return a domain's row of `ps`."""
    return next(found for found in cli.rows("ps") if found.get("name") == name)


def ill(cli: Cli) -> dict[str, str]:
    """Return the node's helpers that `ps` names, with their states."""
    return {found["helper"]: found["state"] for found in cli.rows("ps") if "helper" in found}


def records(cli: Cli, since: int = 0) -> list[dict[str, Any]]:
    """Return the records of the trail after one."""
    return [found for found in cli.rows("audit", "tail", "-n", "1000") if found["n"] > since]


def last(cli: Cli) -> int:
    """Return the number of the last record."""
    return int(cli.rows("audit", "tail", "-n", "1")[0]["n"])


def events(cli: Cli, since: int) -> list[str]:
    """Return what the trail says of both services after a record."""
    found = (str(record["event"]) for record in records(cli, since))
    return [event for event in found if event.startswith(("manager-", "replica-"))]


def replica(cli: Cli) -> dict[str, Any]:
    """Return how the replica stands."""
    return cli.rows("audit", "replica")[0]


def caught_up(cli: Cli) -> bool:
    """Say whether the replica has all that was on record a moment ago."""
    number = last(cli)
    return int(replica(cli)["n"]) >= number


def test_both_start_before_every_other_domain_by_the_fixed_rule(node: Cli) -> None:
    """Their starts are on record first, with the rule and the images' digests; `ps` lists both."""
    starts = [
        record["fields"]
        for record in records(node)
        if record["event"] == "allow" and record["fields"]["hook"] == "domain_create"
    ]
    assert {start["domain"] for start in starts[:2]} == {MANAGER, AUDIT}
    for start in starts[:2]:
        assert start["rules"] == ["core: BOOTSTRAP: the node starts its own service as itself"]
        assert start["parties"] == dict.fromkeys(("operator", "domain"), f"core.{start['domain']}")
        assert len(start["image"]["digest"]) == 64
    assert [start["domain"] for start in starts[2:]] == ["broker", "red", "clerk"]
    for name in (MANAGER, AUDIT):
        found = row(node, name)
        assert (found["label"], found["state"]) == (f"core.{name}", "running")
        assert found["machine"].startswith("qemu/")
    assert ill(node) == {}


def test_the_manager_s_guest_decides_and_no_process_of_the_host_does(node: Cli) -> None:
    """Allows, refusals with their rules, walls and another policy all come over its port."""
    assert not [line for line in node.processes().values() if "skerry.policy.service" in line]
    works(node)
    refused = node.denied("connect", "clerk", "broker")
    assert "[STE-NO-SHARED-TYPE]" in refused
    assert "policy.toml:" in refused
    assert "[CW-CONFLICT]" in node.denied("start", "blue")
    narrow = node.home / "narrow.toml"
    narrow.write_text(POLICY.replace('ste = ["trade", "books"]', 'ste = ["books"]'))
    loaded = node.rows("policy", "load", str(narrow))[0]
    assert len(loaded["cut"]) == 1
    assert "[STE-NO-SHARED-TYPE]" in node.denied("connect", "red", "broker")
    node.ok("policy", "load", str(node.home / "policy.toml"))
    node.ok("connect", "red", "broker", "--name", "orders")
    assert row(node, MANAGER)["state"] == "running", "no policy evicts it"


@pytest.mark.parametrize("name", [MANAGER, AUDIT])
def test_operators_have_no_way_into_a_service(name: str, node: Cli) -> None:
    """No policy knows its label, so each of these is refused; the controls go the same ways."""
    for words in (
        ["exec", name, "true"],
        ["console", name],
        ["pause", name],
        ["relabel", name, "red"],
        ["connect", "red", name],
        ["connect", name, "red"],
    ):
        assert node.run(*words).returncode == 3, words
    assert "starts by itself" in node.run("start", name).stderr
    node.ok("exec", "red", "true")
    node.ok("pause", "clerk")
    node.ok("resume", "clerk")
    assert row(node, name)["state"] == "running"


def test_the_replica_has_the_trail_and_shows_a_missing_end(node: Cli) -> None:
    """A trail that was cut short does not hold against the replica's head; the whole one does."""
    works(node)
    wait_for(lambda: caught_up(node))
    status = replica(node)
    assert (status["state"], status["gaps"], status["first"]) == ("whole", [], 1)
    node.ok("audit", "verify", "--replica")
    trail = (node.home / "state/audit.log").read_bytes().splitlines(keepends=True)
    short = node.home / "short.log"
    short.write_bytes(b"".join(trail[: status["n"] - 1]))
    node.ok("audit", "verify", "--file", str(short))
    cut = node.run("audit", "verify", "--replica", "--file", str(short))
    assert cut.returncode == 1
    assert "the trail ends before the head" in cut.stderr
    kept = node.ok("audit", "export", "--replica", "--format", "json").encode()
    assert kept.splitlines(keepends=True)[: len(trail)] == trail


def test_what_is_written_to_the_trail_s_file_does_not_end_the_replica(node: Cli) -> None:
    """It stands with all that it had, `ps` says that it is not fed, and it goes on afterwards."""
    wait_for(lambda: caught_up(node))
    before, since, pid = replica(node)["n"], last(node), qemu(node, AUDIT)
    path = node.home / "state/audit.log"
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"x\n")
    wait_for(lambda: ill(node) == {"audit replica": "unfed"})
    assert "a line is no record" in node.ok("audit", "replica")
    assert (qemu(node, AUDIT), replica(node)["state"]) == (pid, "whole")
    assert replica(node)["n"] >= before
    whole = path.read_bytes()
    path.write_bytes(whole[:size] + whole[size + 2 :])
    wait_for(lambda: ill(node) == {}, BACK_S)
    wait_for(lambda: caught_up(node), BACK_S)
    assert events(node, since) == ["replica-unfed", "replica-fed"]
    assert qemu(node, AUDIT) == pid


def test_the_replica_s_qemu_can_only_read_the_trail(node: Cli) -> None:
    """Of the feed it holds one end, opened to be read. Only root can look."""
    pid = qemu(node, AUDIT)
    if os.getuid() != 0:
        with pytest.raises(PermissionError):
            list(Path(f"/proc/{pid}/fd").iterdir())
        return
    pipes = [e.name for e in Path(f"/proc/{pid}/fd").iterdir() if "pipe:" in str(e.readlink())]
    flags = [Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split()[3] for fd in pipes]
    modes = [int(flag, 8) & os.O_ACCMODE for flag in flags]
    assert modes
    assert set(modes) <= {os.O_RDONLY}


def test_a_manager_killed_in_mid_decision_denies_and_comes_back(node: Cli) -> None:
    """The question under way is denied; what was allowed before stands; taking away works."""
    number = node.ok("connect", "red", "broker", "--name", "standing").strip()
    node.ok("exec", "red", "true")
    since, pid = last(node), qemu(node, MANAGER)
    os.kill(pid, signal.SIGSTOP)  # so that a question is surely under way
    asking = node.popen("start", "blue")
    time.sleep(1.0)
    os.kill(pid, signal.SIGKILL)
    out, _ = asking.communicate(timeout=20)
    assert asking.returncode == 3
    assert "[DECIDER-UNAVAILABLE]" in out
    began = time.monotonic()
    node.ok("exec", "red", "true")
    assert "[DECIDER-UNAVAILABLE]" in node.denied("relabel", "red", "clerk")
    node.ok("cut", number)
    node.ok("kill", "clerk")
    assert time.monotonic() - began < 10
    assert ill(node) == {"policy manager": "lost"}
    wait_for(lambda: "manager-back" in events(node, since), BACK_S)
    assert events(node, since) == ["manager-lost", "manager-back"]
    assert qemu(node, MANAGER) not in (0, pid)
    node.ok("start", "clerk")
    assert "[CW-CONFLICT]" in node.denied("start", "blue"), "the next one has the wall's history"
    works(node)


def test_a_frozen_manager_denies_and_goes_on_when_it_thaws(node: Cli) -> None:
    """The first question waits a bounded time, the next none; no other is started."""
    since, pid = last(node), qemu(node, MANAGER)
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert "[DECIDER-UNAVAILABLE]" in node.denied("start", "blue")
        assert time.monotonic() - began < ANSWER_S + 5
        began = time.monotonic()
        assert "[DECIDER-UNAVAILABLE]" in node.denied("start", "blue")
        node.ok("kill", "clerk")
        assert ill(node) == {"policy manager": "frozen"}
        assert time.monotonic() - began < ANSWER_S
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: events(node, since) == ["manager-lost", "manager-back"], BACK_S)
    assert qemu(node, MANAGER) == pid
    node.ok("start", "clerk")
    works(node)


def test_to_kill_the_manager_is_taking_away_and_another_is_started(node: Cli) -> None:
    """An operator may, as with every domain; it costs him his new allows until it is back."""
    since, pid = last(node), qemu(node, MANAGER)
    node.ok("kill", MANAGER)
    assert "[DECIDER-UNAVAILABLE]" in node.denied("start", "blue")
    wait_for(lambda: "manager-back" in events(node, since), BACK_S)
    assert qemu(node, MANAGER) not in (0, pid)
    works(node)


def test_a_frozen_replica_delays_no_allow(node: Cli) -> None:
    """The local writer's sync is all that an allow waits for; it lags, and then catches up."""
    wait_for(lambda: caught_up(node))
    before, since, pid = replica(node)["n"], last(node), qemu(node, AUDIT)
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        for _ in range(4):
            works(node)
        assert time.monotonic() - began < 20
        done = node.run("audit", "replica")
        assert done.returncode == 1, "it is asked, and does not answer in time"
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: caught_up(node), BACK_S)
    assert replica(node)["n"] > before
    assert replica(node)["state"] == "whole"
    assert events(node, since) == []
    node.ok("audit", "verify", "--replica")


def test_a_dead_replica_delays_no_allow_and_is_replaced(node: Cli) -> None:
    """Its loss and return are on record; the next one begins with the live segment."""
    since, pid = last(node), qemu(node, AUDIT)
    os.kill(pid, signal.SIGKILL)
    works(node)
    wait_for(lambda: ill(node) == {"audit replica": "lost"})
    assert "is lost" in node.run("audit", "replica").stderr
    wait_for(lambda: "replica-back" in events(node, since), BACK_S)
    assert events(node, since) == ["replica-lost", "replica-back"]
    assert qemu(node, AUDIT) not in (0, pid)
    wait_for(lambda: caught_up(node), BACK_S)
    assert (replica(node)["state"], replica(node)["first"]) == ("whole", 1)


def test_both_live_on_when_the_service_is_killed(node: Cli) -> None:
    """The next service adopts them: the same guests, the same decisions, no gap in the replica."""
    wait_for(lambda: caught_up(node))
    before, since = replica(node)["n"], last(node)
    guests = [qemu(node, name) for name in (MANAGER, AUDIT)]
    service = process(node, "service")
    os.kill(service, signal.SIGKILL)
    wait_for(lambda: any(r["event"] == "recovered-node" for r in records(node, since)), BACK_S)
    assert [qemu(node, name) for name in (MANAGER, AUDIT)] == guests
    found = next(r["fields"] for r in records(node, since) if r["event"] == "recovered-node")
    assert {MANAGER, AUDIT} <= set(found["domains"])
    for name in ("broker", "red", "clerk"):
        node.ok("start", name)
    assert "[STE-NO-SHARED-TYPE]" in node.denied("connect", "clerk", "broker")
    wait_for(lambda: caught_up(node), BACK_S)
    status = replica(node)
    assert status["n"] > before
    assert (status["state"], status["gaps"], status["first"]) == ("whole", [], 1)
    assert ill(node) == {}


def test_both_live_on_when_the_service_starts_itself_anew(node: Cli) -> None:
    """A service that ends in good order leaves them as one that was killed does."""
    wait_for(lambda: caught_up(node))
    guests = [qemu(node, name) for name in (MANAGER, AUDIT)]
    node.ok("restart")
    for name in ("broker", "red", "clerk"):
        wait_for(lambda name=name: node.run("start", name).returncode == 0, BACK_S)  # type: ignore[misc]
    assert [qemu(node, name) for name in (MANAGER, AUDIT)] == guests
    works(node)
    wait_for(lambda: ill(node) == {} and caught_up(node), BACK_S)
    assert (replica(node)["state"], replica(node)["first"]) == ("whole", 1)


def test_a_service_and_the_manager_killed_together_keep_nothing_from_being_taken_away(
    node: Cli,
) -> None:
    """The next service listens at once and ends what it is told to; it allows nothing new before
    another manager's guest has judged what stands."""
    since, guests = last(node), [qemu(node, name) for name in (MANAGER, AUDIT)]
    os.kill(process(node, "service"), signal.SIGKILL)
    os.kill(guests[0], signal.SIGKILL)
    wait_for(lambda: node.run("ps").returncode == 0)
    assert "[DECIDER-UNAVAILABLE]" in node.denied("start", "red")
    node.ok("kill", AUDIT)
    assert not any(r["event"] == "recovered-node" for r in records(node, since)), "still judging"
    wait_for(lambda: any(r["event"] == "recovered-node" for r in records(node, since)), BACK_S)
    assert qemu(node, MANAGER) not in (0, guests[0])
    for name in ("broker", "red", "clerk"):
        node.ok("start", name)
    works(node)
    wait_for(lambda: qemu(node, AUDIT) not in (0, guests[1]), BACK_S)
    wait_for(lambda: ill(node) == {} and caught_up(node), BACK_S)


def test_the_homes_can_not_be_moved_while_the_system_runs(node: Cli) -> None:
    """A file that says otherwise is refused as a whole; the same file changes nothing."""
    other = node.home / "other.toml"
    other.write_text(system('\npolicy-manager = "domain"\n'))
    done = node.run("up", str(other))
    assert done.returncode == 1
    assert "those of the first `up`" in done.stderr
    node.ok("up", str(node.home / "system.toml"))
    assert [row(node, name)["state"] for name in (MANAGER, AUDIT)] == ["running"] * 2


def test_down_ends_both_and_leaves_no_process(node: Cli) -> None:
    """Last of all tests here: nothing of the node is left, no guest either."""
    assert qemu(node, MANAGER)
    assert qemu(node, AUDIT)
    node.ok("down")
    wait_for(lambda: node.processes() == {})


def test_the_services_images_are_held_to_the_image_key() -> None:
    """`up` names the one that is not signed, starts nothing, and leaves nothing."""
    cli = Cli()
    try:
        cli.ok("image", "keygen", str(cli.home / "images"))
        keyed = system('\npolicy-manager = "domain"\nimage-key = "images.pub"\n')
        done = cli.run("up", write_system(cli.home, keyed), "--detach")
        assert done.returncode != 0
        assert f"the image {MANAGER} can't be used" in done.stderr
        wait_for(lambda: cli.processes() == {})
    finally:
        cli.down()

"""What tries the laws after an attack finds a node that breaks them: the controls.

Those of the trail and of refusals are in `test_guests_controls.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from tests.hostile import field as field_module
from tests.hostile.field import Field, Watch
from tests.hostile.fields import Fields
from tests.hostile.observer import change, processes, recovery, residue
from tests.hostile.observer.__main__ import Observer
from tests.hostile.observer.neighbours import Node, Scene
from tests.hostile.observer.outcome import Finding, Unseen, Verdict
from tests.hostile.observer.recovery import Stood
from tests.support.cli import Cli, peer

ORDERS = {"id": 5, "source": "attacker", "sink": "mate", "port": "orders", "state": "live"}
TALK = {"id": 4, "source": "left", "sink": "right", "port": "talk", "state": "live"}
ANSWER = {"generation": 2, "record": 7}
WHY = "the policy of generation 2 refuses it: no type in common"
CUT = {"n": 8, "event": "cut", "fields": {"channel": 5, "why": WHY}}
LOADED = {"n": 9, "event": "loaded", "fields": {"generation": 2}}


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, []),
        ({"after": [ORDERS]}, ["the new policy refuses orders, and it is live"]),
        ({"generation": 2}, ["the generation is 2 after a change, it was 2"]),
        ({"records": [CUT]}, ["the trail has no record of the policy of generation 2"]),
        ({"records": [LOADED]}, ["the trail does not say that orders was cut"]),
        (
            {"records": [CUT | {"n": 6}, LOADED]},  # from before the change
            ["the trail does not say that orders was cut"],
        ),
    ],
    ids=["clean", "stays", "generation", "not loaded", "not cut", "cut before"],
)
def test_a_change_of_policy_that_leaves_something_is_found(
    changed: dict[str, Any], wanted: list[str]
) -> None:
    """A channel that stays, a generation that does not rise, a record that is missing."""
    clean: dict[str, Any] = {
        "generation": 1,
        "before": [ORDERS],
        "after": [],
        "records": [CUT, LOADED],
    }
    found = list(change.kept(ANSWER, **(clean | changed)))
    assert [each.what for each in found] == wanted
    assert {each.kind for each in found} <= {"reached"}


def test_an_end_over_which_something_can_cross_is_found() -> None:
    """Open, or with bytes that wait, of a pair and of either end of a pipe; shut down none is."""
    one, other = socket.socketpair()
    with one, other:
        assert change.carries(one.fileno()) == "is open"
        other.send(b"late")
        one.shutdown(socket.SHUT_RDWR)
        assert change.carries(one.fileno()) == "has 4 bytes that wait to be read"
        assert one.recv(4) == b"late", "drained"
        assert change.carries(one.fileno()) == ""
    read, write = os.pipe()
    assert (change.carries(read), change.carries(write)) == ("is open", "is open")
    os.close(write)
    assert change.carries(read) == ""
    os.close(read)
    read, write = os.pipe()
    os.close(read)
    assert change.carries(write) == ""
    os.close(write)


HOLDER = "import os, sys; sys.stdin.readline(); os.closerange(3, 99); sys.stdin.readline()"


@contextlib.contextmanager
def holding(*descriptors: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that holds these, and gives them up when it is told."""
    argv = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=descriptors) as process:
        try:
            yield process
        finally:
            process.kill()


def let_go(process: subprocess.Popen[bytes]) -> None:
    """Have it give up what it holds."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "control: not cut"])
def test_an_end_that_was_given_up_too_late_is_found(is_cut: bool) -> None:
    """Dead when the call returned it is no finding, whenever its holder closes it."""
    one, other = socket.socketpair()
    with one, other, holding(one.fileno()) as process, change.Ends(process.pid) as ends:
        if is_cut:
            one.shutdown(socket.SHUT_RDWR)
        ends.look()
        one.shutdown(socket.SHUT_RDWR)  # later than the call
        let_go(process)
        seen = list(ends.crossed(0, 1))
    assert [each.what.rpartition("] ")[2] for each in seen] == ([] if is_cut else ["is open"])


def test_a_memory_that_the_attacker_still_holds_is_found() -> None:
    """The control: it holds another one of the same name."""
    memory, alike = (os.memfd_create("channel") for _ in range(2))
    for held, wanted in ((memory, 1), (alike, 0)):
        with (
            holding(memory) as mate,
            holding(held) as attacker,
            change.Ends(mate.pid) as ends,
        ):
            ends.look()
            let_go(mate)
            seen = [each.what for each in ends.crossed(attacker.pid, 1)]
            assert len(seen) == wanted
            assert all("the attacker's QEMU still holds /memfd:channel" in each for each in seen)
    os.close(memory)
    os.close(alike)


def test_an_end_that_is_not_let_go_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its holder never closes was not taken from it."""
    monkeypatch.setattr(change, "GIVEN_UP_S", 0.1)
    one, other = socket.socketpair()
    with one, other, holding(one.fileno()) as process, change.Ends(process.pid) as ends:
        ends.look()
        seen = [each.what for each in ends.crossed(0, 1)]
    assert seen == ["of 1 channels that were cut 0 were let go"]


def test_ends_that_nobody_may_look_at_are_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said that they were not seen."""

    def refuse(pid: int) -> dict[str, int]:
        raise PermissionError(errno.EPERM, str(pid))

    monkeypatch.setattr(change, "_duplicates", refuse)
    with change.Ends(os.getpid()) as ends:
        ends.look()
        assert list(ends.crossed(0, 1)) == [Unseen("ends of another uid's channels")]


BEFORE = Stood({4: TALK, 5: ORDERS}, frozenset({"left", "attacker"}), b"one\ntwo\n")
SAID: dict[str, Any] = {"cut": {}, "ended": {}}


@pytest.mark.parametrize(
    ("after", "said", "wanted"),
    [
        ({"trail": b"one\ntwo\nthree\n"}, SAID, []),
        ({}, None, ["the trail does not say what the service found"]),
        ({"trail": b"one\n"}, SAID, ["the trail lost records that it had when"]),
        ({"channels": {5: ORDERS}}, SAID, ["the channel talk of ('left', 'right') did not"]),
        ({"channels": {4: TALK}}, SAID, ["the channel orders of ('attacker', 'mate') did"]),
        ({"channels": {4: TALK}}, SAID | {"cut": {"5": "doubtful"}}, []),
        ({"channels": {5: ORDERS}}, SAID | {"cut": {"4": "doubtful"}}, ["the channel talk of"]),
        ({"channels": {4: TALK, 5: ORDERS, 6: ORDERS}}, SAID, ["the channel orders was not"]),
        ({"running": frozenset({"attacker"})}, SAID, ["left did not come back"]),
        ({"running": frozenset({"left"})}, SAID, ["attacker did not come back"]),
        ({"running": frozenset({"left"})}, SAID | {"ended": {"attacker": "doubtful"}}, []),
        ({"channels": {4: TALK}}, SAID | {"ended": {"attacker": "doubtful"}}, []),
        ({"running": BEFORE.running | {"heir"}}, SAID, ["heir runs, and did not"]),
    ],
)
def test_a_service_that_comes_back_otherwise_is_found(
    after: dict[str, Any], said: dict[str, Any] | None, wanted: list[str]
) -> None:
    """What was lost or made up; only what is doubtful of the attacker's may go, on record."""
    found = list(
        recovery.unlike(BEFORE, msgspec.structs.replace(BEFORE, **after), said, "attacker")
    )
    assert len(found) == len(wanted)
    for each, words in zip(found, wanted, strict=True):
        assert each.kind == "reached"
        assert each.what.startswith(words)


def test_what_a_service_found_is_its_last_word() -> None:
    """And an attacker that ended by itself meanwhile is no loss; another's end is one."""
    said = [{"event": "recovered-node", "fields": {"cut": {n: "x"}, "ended": {}}} for n in "12"]
    ended = [{"event": "ended", "fields": {"domain": name}} for name in ("left", "attacker")]
    assert recovery.found([ended[0]], "attacker") is None
    assert recovery.found([*said, ended[0]], "attacker") == said[1]["fields"]
    found = recovery.found([said[0], ended[1]], "attacker")
    assert found == {"cut": {"1": "x"}, "ended": {"attacker": "ended"}}


def test_a_text_that_is_left_in_a_file_or_memory_is_found(tmp_path: Path) -> None:
    """Also where two pieces of a file meet and behind a hole; the control: before it was there."""
    text = secrets.token_hex(24).encode()
    for path in (tmp_path / "plain", tmp_path / "within/pieces", tmp_path / "hole"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    memory = os.memfd_create("kept")
    assert list(residue.files(tmp_path, text)) == []
    assert list(residue.memories([os.getpid()], text)) == []
    (tmp_path / "plain").write_bytes(b"x" + text)
    (tmp_path / "within/pieces").write_bytes(b"x" * ((4 << 20) - 7) + text)
    with (tmp_path / "hole").open("wb") as file:
        file.seek(64 << 20)
        file.write(text)
    os.pwrite(memory, text, 1 << 20)
    found = {path.name for path in residue.files(tmp_path, text)}
    assert found == {"plain", "pieces", "hole"}
    (seen,) = residue.memories([os.getpid()], text)
    assert isinstance(seen, Finding)
    assert seen.what.startswith("the attacker's mark is in a memory that")
    os.close(memory)


class Blinking(Observer):
    """An observer whose looks find nothing."""

    def __init__(self) -> None:
        self._findings, self._blind, self._looks = {}, {}, 0

    def look(self) -> None:
        """Do nothing."""


def test_what_was_not_seen_after_one_attack_is_not_said_of_the_next() -> None:
    """And is kept where the last, longer look follows the attack's own report."""
    observer = Blinking()
    observer._note([Unseen("a change"), Finding("reached", "x")])
    first = observer.report()
    assert (first.blind, first.findings) == (("a change",), (Finding("reached", "x"),))
    assert observer.report().blind == ()

    class Last:
        def report(self, what: str) -> Verdict:
            return Verdict((), 1, ("memory",))

        def close(self) -> None:
            pass

    fields = Fields()
    fields._field, fields._watch = cast(Field, object()), cast(Watch, Last())
    assert fields.end(first).blind == ("a change", "memory")


class After(Field):
    """A field whose attacker is in this state after an attack; `done` is what was done then."""

    def __init__(self, state: str) -> None:
        self._state, self._tried, self.mark = state, True, "m"
        self.done: list[str] = []
        self.cli = cast(Cli, self)

    def state(self) -> str:
        """Return it."""
        return self._state

    def renew(self, watch: Watch) -> None:
        """Note it."""
        self.done.append("renew")

    def order(self, what: str) -> None:
        """Note what the observer is told."""
        self.done.append(what)

    def ok(self, *words: str, stdin: bytes = b"") -> str:
        """Note what the guest hears."""
        self.done.append(f"{words[0]} {stdin.decode()}")
        return ""


def test_an_attacker_that_has_ended_gets_a_new_guest_to_lose_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After what is left of its own was searched; and only the thorough form kills the service."""
    monkeypatch.setattr(field_module, "LONG", False)
    for state, thorough, wanted in (
        ("running", False, ["change", "residue"]),
        ("running", True, ["recover", "change", "residue", "inherit"]),
        ("ended", False, ["residue", "renew", "exec m", "change", "residue"]),
    ):
        field = After(state)
        field.aftermath(cast(Watch, field), thorough)
        assert field.done == wanted
    field._tried = False
    field.done.clear()
    field.aftermath(cast(Watch, field))
    assert "recover" in field.done, "the first on a board"
    monkeypatch.setattr(field_module, "LONG", True)
    field.done.clear()
    field.aftermath(cast(Watch, field))
    assert "recover" in field.done, "each in the long form"


def reached(verdict: Verdict) -> list[str]:
    """Return what a law was broken by."""
    return [each.what for each in verdict.findings if each.kind == "reached"]


def test_control_a_policy_that_refuses_nothing_breaks_the_law_of_generations(
    field: Field,
) -> None:
    """Everything the attacker has stays, and the connection that should be refused is made."""
    scene = field.scene()
    watch = Watch(msgspec.structs.replace(scene, refusing=scene.policy))
    with contextlib.closing(watch):
        watch.order("change")
        verdict = watch.report()
    seen = reached(verdict)
    for port in ("orders", "up", "down", "wire", "shared", "still", "chip", "data", "web"):
        assert f"the new policy refuses {port}, and it is live" in seen
        assert f"the trail does not say that {port} was cut" in seen
    assert "the attacker got a channel that the new policy refuses" in seen


def test_control_what_is_planted_where_nothing_may_be_left_is_found(field: Field) -> None:
    """In a file of the node's, in /dev/shm, on a disk that is not released, in the heir."""
    mark = secrets.token_hex(24)
    scene = msgspec.structs.replace(field.scene(), mark=mark, disk="")
    planted = [Path(scene.home) / "state/planted", residue.SHM / f"planted-{mark}"]
    disk = Path(scene.home) / "data.img"
    try:
        for path in planted:
            path.write_text(mark)
        # Not as a word: the trail would have it.
        script = "cat >/dev/vda && sync"
        field.cli.ok("exec", "-i", "attacker", "--", "sh", "-c", script, stdin=mark.encode())
        with contextlib.closing(Watch(scene)) as watch:
            watch.order("residue")
            seen = reached(watch.report())
        assert set(seen) == {f"the attacker's mark is in {path}" for path in [*planted, disk]}
    finally:
        for path in planted:
            path.unlink(missing_ok=True)
    with contextlib.closing(Watch(msgspec.structs.replace(scene, disk="data"))) as watch:
        watch.order("residue")
        assert reached(watch.report()) == [], "the control: released, it is gone"
    own = msgspec.structs.replace(scene, mark="Linux version")
    with contextlib.closing(Watch(own)) as watch:
        watch.order("inherit")
        verdict = watch.report()
    wanted = "the attacker's mark is in the memory of heir's QEMU"
    assert wanted in reached(verdict) or (os.getuid() != 0 and verdict.blind)


class Forgetful(Node):
    """A node that is said to have cut what it did not."""

    def ask(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Cut nothing."""
        if words[0] == "cut":
            return subprocess.CompletedProcess(words, 0, b"", b"")
        return super().ask(*words, stdin=stdin)


def test_control_what_does_not_come_back_with_the_service_is_found(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A domain that is killed along with it, and a channel that was answered to be cut."""
    field.cli.ok("start", "heir")
    service = peer(field.cli.home / "run/control.sock")
    supervisor = int(Path(f"/proc/{service}/stat").read_text().rpartition(")")[2].split()[1])
    heir = processes.qemu_of(supervisor, "heir")
    kill = recovery._kill

    def both(node: Node, scene: Scene) -> None:
        os.kill(heir, signal.SIGKILL)
        kill(node, scene)

    monkeypatch.setattr(recovery, "_kill", both)
    try:
        found = [each.what for each in recovery.comes_back(Forgetful(field.scene()), field.scene())]
    finally:
        for row in field.cli.rows("channels"):
            if row["port"] in ("stays", "goes"):
                field.cli.ok("cut", str(row["id"]))
    assert found == [
        "heir did not come back",
        "a channel that was bound or cut is not as it was answered",
    ]

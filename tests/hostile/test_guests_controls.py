"""What watches the attacks is told lies, and finds them: the controls that need no machine.

Those that do are in `test_guests_observer.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from skerry.audit.chain import GENESIS, seal
from skerry.audit.record import body_json, fields_json
from tests.hostile import field as field_module
from tests.hostile.attacks import ATTACKS, Attack
from tests.hostile.field import LIVES, Attacked, Field, Watch
from tests.hostile.observer import laws, processes
from tests.hostile.observer.neighbours import NoAnswer, Node, Scene, missing
from tests.hostile.observer.outcome import Finding, Verdict

TALK = {"source": "left", "sink": "right", "port": "talk", "state": "live", "id": 4, "record": 1}
ORDERS = {
    "source": "attacker",
    "sink": "mate",
    "port": "orders",
    "state": "live",
    "id": 5,
    "record": 2,
}
ENDED = {"name": "attacker", "state": "ended", "reason": "QEMU was ended by SIGSEGV"}
REFUSED = b"denied [STE-NO-SHARED-TYPE]"

Answers = Mapping[str, Sequence[dict[str, Any]] | int]


def scene(home: Path = Path("/nonexistent")) -> Scene:
    """Return the field's scene, of no node."""
    return Scene(
        home=str(home),
        share="",
        attacker="attacker",
        neighbours=("left", "right"),
        mate="mate",
        secret="s" * 48,
        mark="m" * 48,
        backward="b" * 48,
        refused=("mate", "left"),
        expected=(("left", "right", "talk"),),
    )


class Said(Node):
    """A node that answers as told: rows, or an exit code; what can be cut is in `cuts`."""

    def __init__(self, answers: Answers, where: Scene | None = None) -> None:
        super().__init__(where or scene())
        self._answers = dict(answers)
        self.cuts: set[int] = set()

    def ask(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Answer."""
        if words[0] == "cut" and int(words[1]) in self.cuts:
            rows = cast(Sequence[dict[str, Any]], self._answers["channels"])
            self._answers["channels"] = [row for row in rows if str(row["id"]) != words[1]]
        found = self._answers.get(words[0], ())
        if isinstance(found, int):
            return subprocess.CompletedProcess(words, found, b"", REFUSED)
        out = b"".join(json.dumps(row).encode() + b"\n" for row in found)
        return subprocess.CompletedProcess(words, 0, out, b"")


def words(found: Iterator[Finding], kind: str = "hindered") -> list[str]:
    """Return what was found, all of which is of one kind."""
    listed = list(found)
    assert {each.kind for each in listed} <= {kind}
    return [each.what for each in listed]


def test_what_can_not_be_cut_is_found() -> None:
    """The control: what goes when it is cut is no finding, and the neighbours' stays."""
    node = Said({"channels": [TALK, ORDERS]})
    node.cuts = {4, 5}
    assert words(node.revoke("attacker")) == []
    assert node.rows("channels") == [TALK]
    node = Said({"channels": [TALK, ORDERS]})
    assert words(node.revoke("attacker")) == ["what was cut is still there: orders"]


def test_a_list_that_fails_is_no_empty_list() -> None:
    """Neither what was cut nor what a domain has is well because nobody says what there is."""
    node = Said({"channels": 1, "ps": 1})
    with pytest.raises(NoAnswer, match="`skerry channels` came to 1"):
        node.rows("channels")
    assert words(node.revoke("attacker"))[0].startswith("`skerry channels` came to 1")
    assert words(node.served())[0].startswith("`skerry ps` came to 1")


def test_a_channel_of_the_neighbours_that_is_gone_is_found() -> None:
    """Or that is not live; the control: while it is, nothing is."""
    assert words(missing([TALK], scene())) == []
    wanted = ["the channel talk from left to right is not live"]
    assert words(missing([ORDERS], scene())) == wanted
    assert words(missing([TALK | {"state": "cut"}], scene())) == wanted


def test_a_process_that_serves_others_and_has_ended_is_found() -> None:
    """Once; the control: while it runs it is not."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as served:
        assert served.stdin is not None
        assert served.stdout is not None
        served.stdin.write(b"x")
        served.stdin.flush()
        assert served.stdout.read(1) == b"x"
        core = {served.pid: "skerry.audit.service", os.getpid(): "another"}
        assert words(processes.lost(core)) == []
        served.kill()
    assert words(processes.lost(core)) == [
        "a process that serves others has ended: skerry.audit.service"
    ]
    assert words(processes.lost(core)) == []


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, []),
        ({"ps": [ENDED | {"state": "running"}]}, ["`ps` says that it is running"]),
        ({"ps": [ENDED | {"reason": ""}]}, ["`ps` says that it is ended"]),
        ({"ps": []}, ["`ps` says that it is None"]),
        ({"channels": [TALK, ORDERS]}, ["it has channels"]),
        ({"audit": []}, ["the trail has no record of it"]),
    ],
    ids=["clean", "runs", "no reason", "unknown", "channel", "unrecorded"],
)
def test_an_unclean_end_is_found(change: Answers, left: list[str]) -> None:
    """Unreported, unrecorded or not cleaned up, each in its words; a clean one is no finding."""
    record = {"event": "ended", "fields": {"domain": "attacker"}}
    clean: Answers = {
        "ps": [{"helper": "audit writer", "state": "failing"}, ENDED],
        "channels": [TALK, ORDERS | {"state": "stranded"}],
        "audit": [record],
    }
    assert Said({**clean, **change}).left_of("attacker")[0] == left


def trail(folder: Path, allowed: Sequence[int]) -> Path:
    """Write a trail that allows these channels, one record for each; return its file."""
    (folder / "state").mkdir()
    path, prev = folder / "state/audit.log", GENESIS
    for n, channel in enumerate(allowed, 1):
        body = body_json(n, n, n, prev, "allow", fields_json({"channel": channel}))
        line, prev = seal(body, prev)
        with path.open("ab") as file:
            file.write(line)
    return path


def laws_of(home: Path, answers: Answers) -> list[tuple[str, str]]:
    """Return which laws do not hold of a node with this home."""
    where = scene(home)
    found = laws.broken(Said({"connect": 3, **answers}, where), where, os.getpid())
    return [(each.kind, each.what) for each in found]


def test_a_trail_that_does_not_hold_is_found(tmp_path: Path) -> None:
    """Altered, or without the allow of a live channel; the control: the whole one holds."""
    path = trail(tmp_path, [4, 5])
    both: Answers = {"channels": [TALK, ORDERS]}
    assert laws_of(tmp_path, both) == []
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"channel":5', b'"channel":6'))
    ((kind, what),) = laws_of(tmp_path, both)
    assert kind == "reached"
    assert "was altered" in what
    path.write_bytes(whole)
    other: Answers = {"channels": [TALK, ORDERS | {"id": 6}]}
    ((kind, what),) = laws_of(tmp_path, other)
    assert kind == "reached"
    assert "channel 6 has no allow" in what


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"channels": [TALK, ORDERS | {"sink": "left"}]}, "the attacker has the channel orders"),
        ({"connect": ()}, "mate got a channel with left"),
    ],
    ids=["channel", "connect"],
)
def test_a_flow_that_the_policy_refuses_is_found(
    change: Answers, wanted: str, tmp_path: Path
) -> None:
    """Whether it stands or can be made; the control stands above."""
    trail(tmp_path, [4, 5])
    ((kind, what),) = laws_of(tmp_path, {"channels": [TALK, ORDERS], **change})
    assert kind == "reached"
    assert what.startswith(wanted)


THREAD = """
import ctypes, sys, threading, time
libc = ctypes.CDLL(None)
def change():
    libc.unshare(0x400)                   # CLONE_FILES: descriptors of its own
    kept = open(sys.argv[1])
    libc.prctl(38, 1, 0, 0, 0)            # PR_SET_NO_NEW_PRIVS
    print("changed", flush=True)
    time.sleep(600)
thread = threading.Thread(target=change, daemon=True)
if sys.stdin.readline(): thread.start()
thread.join()
"""


def test_what_only_one_thread_of_a_process_is_and_holds_is_found(tmp_path: Path) -> None:
    """Its descriptors and rights are its own; the control: before it changed there was nothing."""
    held = tmp_path / "held"
    held.touch()
    argv = [sys.executable, "-c", THREAD, str(held)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            before = processes.likeness(process.pid)
            assert list(processes.changes(before, before, 0)) == rights_of(before)
            process.stdin.write(b"change\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"changed\n"
            now = processes.likeness(process.pid)
            assert str(held) not in {
                str(each.readlink()) for each in Path(f"/proc/{process.pid}/fd").iterdir()
            }, "the leader does not hold it"
            seen = [each.what for each in processes.changes(before, now, 0)]
            assert f"it holds {held}, which it was not given" in seen
            if before.rights["NoNewPrivs"] == "0":
                assert "its NoNewPrivs is 0 / 1" in seen
        finally:
            process.kill()


def rights_of(likeness: processes.Likeness) -> list[Finding]:
    """Return what is said of a process that no jail was made for."""
    return [
        Finding("reached", f"its {key} is {value}")
        for key, value in likeness.rights.items()
        if value != processes.WANTED[key]
    ]


def test_a_process_that_nobody_may_look_at_any_more_is_found() -> None:
    """What an observer loses sight of in the middle of an attack is not passed over."""
    before = processes.Likeness("7 7 7 7", processes.WANTED, {}, frozenset())
    after = processes.Likeness("7 7 7 7", processes.WANTED, {}, None)
    assert words(processes.changes(before, after, 0), "reached") == [
        "nobody may look at it any more"
    ]
    assert words(processes.changes(after, after, 0), "reached") == []


def test_a_process_that_has_ended_has_no_likeness() -> None:
    """Whether it was reaped or not: then the observer looks at what became of it."""
    with subprocess.Popen(["true"]) as process:
        until_ended(process.pid)
        with pytest.raises(OSError, match=str(process.pid)):
            processes.likeness(process.pid)
    with pytest.raises(OSError, match=str(process.pid)):
        processes.likeness(process.pid)


def until_ended(pid: int) -> None:
    """Wait until a process has ended, and do not reap it."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


class Lives(Field):
    """A field whose attacker's lives are told: what each comes to, and all take a second."""

    def __init__(self, *lives: Attacked) -> None:
        self.board = "pc"
        self._lives = iter(lives)
        self.asked: list[bool] = []

    def monotonic(self) -> float:
        """Return the time, in seconds."""
        return float(len(self.asked))

    def renew(self, watch: Watch) -> None:
        """Do nothing."""

    def _life(self, attack: Attack, watch: Watch, seconds: float, to_revoke: bool) -> Attacked:
        self.asked.append(to_revoke)
        return next(self._lives)


def attacked(
    monkeypatch: pytest.MonkeyPatch, field: Lives, attack: Attack, seconds: float
) -> Attacked:
    """Attack for so long."""
    monkeypatch.setattr(field_module, "time", field)
    return field.attack(attack, cast(Watch, NoWatch()), seconds)


class NoWatch:
    """An observer that looks at nothing."""

    def order(self, what: str) -> None:
        """Do nothing."""


FLOOD = next(attack for attack in ATTACKS if attack.revoke)


@pytest.mark.parametrize(
    ("lives", "wanted", "asked"),
    [
        ([Attacked(5, True)], Attacked(5, True), [True]),
        ([Attacked(5, False), Attacked(2, True)], Attacked(7, True), [True, True]),
        ([Attacked(1, False)] * LIVES, Attacked(LIVES, False), [True] * LIVES),
    ],
    ids=["at once", "in the second", "never"],
)
def test_an_attack_counts_as_cut_only_if_it_was(
    lives: list[Attacked], wanted: Attacked, asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that ends before half of its time gets another; where none lives so long it is
    said, and the attack's test fails."""
    field = Lives(*lives)
    assert attacked(monkeypatch, field, FLOOD, 0.5) == wanted
    assert field.asked == asked


def test_a_cut_is_not_asked_for_again_in_a_later_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for an attack that has none."""
    field = Lives(Attacked(5, True), Attacked(5, False))
    assert attacked(monkeypatch, field, FLOOD, 1.5).revoked
    assert field.asked == [True, False]
    field = Lives(Attacked(5, False))
    idle = Attack("idle", "nothing", fresh=True)
    assert not attacked(monkeypatch, field, idle, 0.5).revoked
    assert field.asked == [False]


def test_the_table_says_what_was_not_seen() -> None:
    """An attack that nobody could look at in full is not said to be well without that."""
    field = Lives()
    blind = Verdict((), 1, ("memory of another uid's process",))
    row = field.row(FLOOD, 30, 5, blind)
    assert (row.outcome, row.how) == ("contained", "not seen: memory of another uid's process")
    assert field.row(FLOOD, 30, 5, Verdict((), 1)).how == "-"


def test_every_attack_that_needs_its_channels_gets_a_fresh_guest() -> None:
    """What follows one that cuts everything would else attack from a guest that has nothing."""
    for before, after in itertools.pairwise(ATTACKS):
        assert after.fresh or not before.revoke, after.name

"""The observer of the attacks finds what is planted: each class of outcome can be reached.

Without these, `contained` would say no more than that nobody looked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from skerry.jail.identity import IdentityPool
from tests.hostile import table
from tests.hostile.attacks import Attack
from tests.hostile.field import Field, Watch
from tests.hostile.fields import Fields
from tests.hostile.observer import processes
from tests.hostile.observer.baits import Baits, Places
from tests.hostile.observer.outcome import WORSE, Finding, Kind, Verdict, classify
from tests.support.cli import peer
from tests.support.stand_ins import StandIn
from tests.support.supervisor import running_supervisor

BOUND_S = 4.0
"""How long an answer may take where one is held up on purpose."""

TOUCH = """
import os, socket, sys
places = {places!r}
def write():
    with open(places[0], "r+b") as file: file.write(b"changed")
def make():
    open(places[0] + "-new", "x").close()
def connect(family, address):
    with socket.socket(family) as sock: sock.connect(address)
done = []
for name, way in dict(
    file=write,
    new=make,
    unix=lambda: connect(socket.AF_UNIX, places[1]),
    tcp=lambda: connect(socket.AF_INET, ("127.0.0.1", places[2])),
    abstract=lambda: connect(socket.AF_UNIX, "\\0" + places[3]),
).items():
    try:
        way()
        done.append(name)
    except OSError: pass
print("done", *done, flush=True)
"""


@pytest.mark.parametrize(
    ("kinds", "outcome"),
    [
        ((), "contained"),
        (("ended",), "abnormal termination"),
        (("hindered", "ended"), "partial compromise"),
        (("ended", "reached", "hindered"), "total compromise"),
    ],
)
def test_the_worst_that_was_found_counts(kinds: tuple[Kind, ...], outcome: str) -> None:
    """Each class, and that a worse finding is not outweighed by others."""
    assert classify(Finding(kind, "x") for kind in kinds) == outcome
    assert Verdict(tuple(Finding(kind, "x") for kind in kinds), 1).outcome == outcome
    assert outcome in WORSE


def _touch(pool: IdentityPool, places: Places, off: frozenset[str]) -> set[str]:
    """Let a program in QEMU's jail touch the baits; return which it could."""

    async def run() -> set[str]:
        async with running_supervisor() as client:
            program = StandIn(client, pool, off)
            null = os.open(os.devnull, os.O_RDONLY)
            try:
                held = places.file, places.socket, places.port, places.abstract
                await program.start(TOUCH.format(places=held), null)
                done = await program.line()
            finally:
                os.close(null)
            await program.close()
            return set(done.split()[1:])

    return asyncio.run(run())


def test_a_program_in_the_whole_jail_touches_no_bait(pool: IdentityPool) -> None:
    """And the observer sees nothing."""
    with contextlib.closing(Baits()) as baits:
        assert _touch(pool, baits.places, frozenset()) == set()
        assert baits.look() == []


def test_control_with_layers_off_the_same_program_touches_all_and_it_is_seen(
    pool: IdentityPool,
) -> None:
    """Each bait: what is written, what is made beside it, and each connection."""
    with contextlib.closing(Baits()) as baits:
        off = frozenset({"seccomp", "filesystem", "network", "landlock"})
        assert _touch(pool, baits.places, off) == {"file", "new", "unix", "tcp", "abstract"}
        found = baits.look()
        assert {finding.kind for finding in found} == {"reached"}
        seen = [finding.what for finding in found]
        assert "the bait canary was changed" in seen
        assert "the bait canary-new was touched" in seen
        assert sum("connected" in words for words in seen) == 3


def test_a_process_of_a_uid_outside_of_its_jail_is_found() -> None:
    """This one is, where it is not said to be of the jail; the control: where it is said."""
    me = str(os.getpid())
    seen = [f.what for f in processes.strangers(os.getuid(), ())]
    assert any(words.endswith(f"has its uid: {me}") for words in seen)
    jail = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    seen = [f.what for f in processes.strangers(os.getuid(), jail)]
    assert not any("a process" in words for words in seen)


def test_what_a_qemu_becomes_is_said() -> None:
    """Another uid, a right, a namespace, a descriptor, a child: each is a finding of its own."""
    before = processes.Likeness("7 7 7 7", processes.WANTED, {"net": "a"}, frozenset({"/x"}))
    assert list(processes.changes(before, before, 0)) == []
    after = processes.Likeness(
        "7 0 7 7",
        {**processes.WANTED, "CapEff": "1"},
        {"net": "b"},
        frozenset({"/x", "socket:[1]"}),
    )
    seen = [finding.what for finding in processes.changes(before, after, 2)]
    assert len(seen) == 5
    assert "it holds socket:[1], which it was not given" in seen


def test_a_text_is_found_in_a_process_that_has_it() -> None:
    """Our own memory has it, also across the pieces in which it is read; another's has not."""
    text = secrets.token_hex(16).encode()
    assert processes.held_texts(os.getpid(), [text]) == frozenset({text})
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            assert processes.held_texts(other.pid, [text]) == frozenset()
        finally:
            other.kill()


@pytest.fixture(scope="module", autouse=True)
def _last(fields: Fields) -> Iterator[None]:
    """No test behind these needs the field, and its machines would slow them."""
    yield
    fields.close()


def of(field: Field, kind: str) -> int:
    """Return a process of the field's node: `service`, or the QEMU of a domain."""
    service = peer(field.cli.home / "run/control.sock")
    if kind == "service":
        return service
    supervisor = int(Path(f"/proc/{service}/stat").read_text().rpartition(")")[2].split()[1])
    return processes.qemu_of(supervisor, kind)


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """Freeze a process for the length of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_guest_that_does_nothing_is_contained(field: Field) -> None:
    """Every look, the thorough one too, finds nothing; and it did look, and tried every law."""
    idle = Attack("idle", "nothing", fresh=True)
    with field.watched() as watch:
        assert watch.ready.qemu == of(field, "attacker") > 0
        field.attack(idle, watch, 1)
        field.aftermath(watch, thorough=True)
        verdict = watch.report("end")
    assert verdict.findings == ()
    assert verdict.outcome == "contained"
    assert verdict.looks > 0
    assert verdict.blind == () or os.getuid() != 0
    assert field.state() == "ended"
    records = field.cli.rows("audit", "tail", "-n", "100")
    events = [each["event"] for each in records]
    assert {"recovered-node", "released"} <= set(events), "the control: it was killed"
    loaded = [each["fields"]["cut"] for each in records if each["event"] == "loaded"]
    assert loaded[-2:] == [9, 0], "the control: two policies were loaded"
    assert any(each["fields"].get("domain") == "heir" for each in records)


def test_a_qemu_killed_from_outside_is_an_abnormal_termination(field: Field) -> None:
    """It was reported, recorded and cleaned up, and nobody else noticed."""
    with field.watched() as watch:
        os.kill(of(field, "attacker"), signal.SIGKILL)
        verdict = watch.report()
    (finding,) = verdict.findings
    assert finding.kind == "ended"
    assert finding.what.startswith("QEMU was ended by SIGKILL")
    assert verdict.outcome == "abnormal termination"


def test_a_frozen_node_and_a_frozen_neighbour_are_a_partial_compromise(field: Field) -> None:
    """Neither answers within the bound; the control: thawed, they do."""
    with field.watched(BOUND_S) as watch:
        for who in ("service", "left"):
            with standing_still(of(field, who)):
                verdict = watch.report()
            assert verdict.outcome == "partial compromise", who
            assert any("had no answer" in finding.what for finding in verdict.findings)
    with field.watched() as watch:
        assert watch.report().outcome == "contained"
    watch = Watch(msgspec.structs.replace(field.scene(), most=1 << 20))
    with contextlib.closing(watch):
        seen = [finding.what for finding in watch.report().findings]
    assert seen == ["its machine takes more than 1 MiB of the host"]


def test_a_breach_of_anything_is_a_total_compromise(field: Field) -> None:
    """Planted all at once: each is found, and said in words of its own."""
    words = secrets.token_hex(24), secrets.token_hex(24), secrets.token_hex(24)
    secret, mark, backward = words
    scene = msgspec.structs.replace(
        field.scene(), secret=secret, mark=mark, backward=backward, refused=("attacker", "mate")
    )
    watch = Watch(scene)
    try:
        for domain, word in (("attacker", secret), ("mate", backward)):
            field.cli.ok("exec", domain, "--", "sh", "-c", f"echo {word} > /tmp/planted")
        field.cli.ok("exec", "left", "--", "sh", "-c", f"echo {mark} > /dev/console")
        field.cli.ok("connect", "attacker", "mate", "--name", "extra")
        Path(watch.ready.baits.file).write_bytes(b"changed")
        verdict = watch.report("end")
    finally:
        watch.close()
        for row in field.cli.rows("channels"):
            if row["port"] == "extra" or row["port"].startswith("ch"):
                field.cli.ok("cut", str(row["id"]))
    assert verdict.outcome == "total compromise"
    seen = [finding.what for finding in verdict.findings if finding.kind == "reached"]
    wanted = {
        "the bait canary was changed",
        "left's /run/canary is not what it was",
        "the attacker's words are on left's console",
        "attacker got a channel with mate",
    }
    by_root = {
        "the attacker's mark is in the memory of left's QEMU",
        "a neighbour's secret is in the memory of attacker's QEMU",
        "what went backwards over a one-way channel is in mate",
    }
    assert wanted <= set(seen)
    # An ordinary user may not look into another uid's process, and the observer says so.
    assert by_root <= set(seen) or (os.getuid() != 0 and verdict.blind)
    assert any(words.startswith("it holds socket:") for words in seen) or os.getuid() != 0


def test_the_table_says_what_was_seen_and_no_date(tmp_path: Path) -> None:
    """It stands between its marks, the rest is not touched; a page without them is refused."""
    page = tmp_path / "hostile.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write(page, [table.Row("flood", "pc", 30.0, 1_234_567, "contained", "-")])
    text = page.read_text()
    assert "| flood | pc | 30 | 1.2 M | contained | - |" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    table.write(page, [table.Row("flood", "q35", 30.0, 99, "contained", "-")])
    table.write(page, [table.Row("flood", "pc", 30.0, 130_400, "contained", "new")])
    text = page.read_text()
    assert "| flood | q35 | 30 | 99 |" in text, "what was not run stays"
    assert "| flood | pc | 30 | 130 k | contained | new |" in text
    assert "1.2 M" not in text
    page.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the marks"):
        table.write(page, [])

"""The audit writer as a process: what was acknowledged is there once, whatever happens to it."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skerry.audit import client as client_module
from skerry.audit import opening, service
from skerry.audit import outbox as outbox_module
from skerry.audit.chain import SEGMENT, Link, verify
from skerry.audit.client import AuditClient
from skerry.audit.disk import HostDisk
from skerry.audit.messages import MAX_MESSAGE, Begin, Begun, Follow, Write, Written, order, packed
from skerry.audit.read import first_kept, read_lines
from skerry.audit.record import Record, parse_record
from skerry.audit.writer import AuditTrail
from skerry.errors import AuditUnavailable, Denied
from skerry.monitor.protocols import AuditLog
from tests.support.audit import Writers, until


def proven(path: Path) -> list[Record]:
    """Return the records of a trail, after proving it."""
    lines = list(read_lines(path))
    proof = verify(lines, first=first_kept(path))
    assert not proof.broken, proof
    return [parse_record(line) for line in lines]


@contextlib.asynccontextmanager
async def trail(
    path: Path, writers: Writers, rotate: int = 0, keep: int = 1000
) -> AsyncIterator[AuditClient]:
    """Open a trail with a process, and close it."""
    log = await AuditClient.open(path, writers.start, rotate=rotate, keep=keep)
    try:
        yield log
    finally:
        await log.close()
        await asyncio.to_thread(writers.reap)


def test_an_append_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    """Appends and notes are in the file, in order, and a later writer goes on."""
    path = tmp_path / "audit.log"

    async def main() -> None:
        for life in range(3):
            writers = Writers()
            async with trail(path, writers) as log:
                checked: AuditLog = log
                assert (log.state, log.failure) == ("running", "")
                assert await checked.append("allow", {"life": life}) == 2 * life + 1
                assert len(path.read_bytes().splitlines()) == 2 * life + 1
                assert log.head == Link(2 * life + 1, proven(path)[-1].hash)
                checked.note("cut", {})
            assert log.state == "closed"
            with pytest.raises(AuditUnavailable, match="closed"):
                await log.append("allow", {})
            await log.close()
            assert writers.reap() == [0]

    asyncio.run(main())
    assert [record.event for record in proven(path)] == ["allow", "cut"] * 3
    assert path.stat().st_mode & 0o777 == 0o600


def test_many_appends_share_a_message_and_a_sync(tmp_path: Path) -> None:
    """Ten thousand at once are written in far fewer syncs than records, each with its number."""

    async def main() -> None:
        async with trail(tmp_path / "audit.log", Writers()) as log:
            begin = time.monotonic()
            numbers = await asyncio.gather(*(log.append("allow", {"i": i}) for i in range(10_000)))
            assert time.monotonic() - begin < 5.0
            assert numbers == list(range(1, 10_001))

    asyncio.run(main())
    found = [record.fields["i"] for record in proven(tmp_path / "audit.log")]
    assert found == list(range(10_000))


def test_records_of_any_size_pass(tmp_path: Path) -> None:
    """The longest record that the trail takes fits into a message; a longer one is refused."""

    async def main() -> None:
        async with trail(tmp_path / "audit.log", Writers()) as log:
            await asyncio.gather(*(log.append("allow", {"x": "y" * 59_900}) for _ in range(30)))
            with pytest.raises(AuditUnavailable, match="longer than"):
                await log.append("allow", {"x": "y" * 60_001})
            log.note("cut", {"x": "y" * 60_001, "odd": object()})

    asyncio.run(main())
    assert len(proven(tmp_path / "audit.log")) == 31


def test_the_process_rotates_with_descriptors_of_the_node(tmp_path: Path) -> None:
    """Segments are closed and removed while appends go on; nothing is lost or doubled."""
    path = tmp_path / "audit.log"

    async def main() -> list[int]:
        async with trail(path, Writers(), rotate=20_000, keep=3) as log:
            numbers: list[int] = []
            for _ in range(20):
                numbers += await asyncio.gather(*(log.append("allow", {}) for _ in range(50)))
            return numbers

    numbers = asyncio.run(main())
    found = proven(path)
    assert found[0].n > 1
    assert len([record for record in found if record.event == SEGMENT]) >= 3
    assert {n for n in numbers if n >= found[0].n} <= {record.n for record in found}
    assert len(numbers) == len(set(numbers)) == 1000
    assert len(list(tmp_path.iterdir())) <= 4


@pytest.mark.parametrize("seed", range(3))
def test_a_writer_killed_under_load_loses_and_doubles_nothing(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at random points, rotating too: each acknowledged record and each note is there
    exactly once, and the chain verifies."""
    path = tmp_path / "audit.log"
    monkeypatch.setattr(client_module, "LAST_PAUSE_S", client_module.FIRST_PAUSE_S)
    chance = random.Random(seed)
    writers = Writers()
    acknowledged: dict[int, int] = {}
    noted: list[int] = []
    refused = 0

    async def main() -> None:
        nonlocal refused
        async with trail(path, writers, rotate=30_000) as log:
            over = False

            async def appender(number: int) -> None:
                nonlocal refused
                mark = number
                while not over:
                    mark += 1000
                    try:
                        n = await log.append("allow", {"mark": mark, "x": "y" * (mark % 500)})
                    except AuditUnavailable:
                        refused += 1
                        await asyncio.sleep(0.01)
                    else:
                        assert n not in acknowledged
                        acknowledged[n] = mark
                    if mark % 7 == 0:
                        noted.append(mark)
                        log.note("cut", {"note": mark})

            appenders = [asyncio.ensure_future(appender(number)) for number in range(20)]
            for _ in range(8):
                await asyncio.sleep(chance.uniform(0.0, 0.15))
                writers.last.kill()
                count = len(writers.started)
                await until(lambda count=count: len(writers.started) > count)  # type: ignore[misc]
                await until(lambda: log.state == "running")
            over = True
            await asyncio.gather(*appenders)

    asyncio.run(main())
    found = proven(path)
    marks = {record.n: record.fields["mark"] for record in found if record.event == "allow"}
    assert acknowledged.items() <= marks.items()
    assert len(set(marks.values())) == len(marks)
    assert [record.fields["note"] for record in found if record.event == "cut"] == noted
    assert refused
    assert acknowledged
    told = [record.fields for record in found if record.event == "recovered"]
    assert len(told) >= 8
    assert sum(int(str(fields.get("refused", 0))) for fields in told) >= refused


def test_the_first_append_after_a_death_is_refused_at_once(tmp_path: Path) -> None:
    """So are those that wait; notes are kept, the state is seen, and a new writer takes over."""
    path = tmp_path / "audit.log"
    writers = Writers()

    async def main() -> None:
        async with trail(path, writers) as log:
            await log.append("allow", {})
            writers.last.freeze()
            waiting = asyncio.ensure_future(log.append("allow", {"i": 2}))
            await asyncio.sleep(0.05)
            writers.fails = True
            writers.last.kill()
            with pytest.raises(AuditUnavailable, match="its writer is gone"):
                await waiting
            begin = time.monotonic()
            with pytest.raises(AuditUnavailable) as caught:
                await log.append("allow", {})
            assert isinstance(caught.value, Denied)
            assert time.monotonic() - begin < 0.1
            assert log.state == "restarting"
            log.note("cut", {"i": 3})
            await until(lambda: "no process" in log.failure)
            writers.fails = False
            await until(lambda: log.state == "running")
            await log.append("allow", {"i": 4})

    asyncio.run(main())
    found = [(record.event, record.fields.get("i")) for record in proven(path)]
    assert found[0] == ("allow", None)
    assert found[-1] == ("allow", 4)
    assert ("cut", 3) in found
    assert ("recovered", None) in found


def test_the_very_first_records_are_not_doubled_by_a_death(tmp_path: Path) -> None:
    """Written and not acknowledged, before anything was: the trail tells, nothing is sent again."""
    path = tmp_path / "audit.log"
    silent = Writers(SILENT)

    async def main() -> None:
        async with trail(path, silent) as log:
            for i in range(5):
                log.note("cut", {"i": i})
            await until(lambda: log.state == "running" and len(silent.started) > 1)
            await log.append("allow", {})

    asyncio.run(main())
    found = proven(path)
    assert [record.fields["i"] for record in found if record.event == "cut"] == list(range(5))


SILENT = """
import os, sys
os.dup2(int(sys.argv[1]), {number})
from skerry.audit import service
say = service.Service._say
def mute(self, answer):
    if isinstance(answer, service.Written) and answer.first == 1:
        os.kill(os.getpid(), 9)
    say(self, answer)
service.Service._say = mute
service.main()
"""


def test_a_frozen_writer_refuses_and_goes_on_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is refused after `ANSWER_S`, what comes then at once, until it answers again."""
    monkeypatch.setattr(client_module, "ANSWER_S", 0.3)
    path = tmp_path / "audit.log"
    writers = Writers()

    async def main() -> None:
        async with trail(path, writers) as log:
            await log.append("allow", {"i": 1})
            writers.last.freeze()
            begin = time.monotonic()
            with pytest.raises(AuditUnavailable, match="has not answered"):
                await log.append("allow", {"i": 2})
            assert 0.25 < time.monotonic() - begin < 2.0
            assert log.state == "frozen"
            begin = time.monotonic()
            with pytest.raises(AuditUnavailable, match="has not answered"):
                await log.append("allow", {"i": 3})
            assert time.monotonic() - begin < 0.1
            log.note("cut", {"i": 4})
            writers.last.thaw()
            await until(lambda: log.state == "running")
            await log.append("allow", {"i": 5})

    asyncio.run(main())
    found = [(record.event, record.fields.get("i")) for record in proven(path)]
    assert found[0] == ("allow", 1)
    assert found[-1] == ("allow", 5)
    assert ("cut", 4) in found
    assert ("allow", 3) not in found
    assert len(writers.started) == 1


def test_when_the_node_dies_all_that_it_had_sent_is_written(tmp_path: Path) -> None:
    """The writer meets the end of its socket with a full inbox, and writes it before it ends."""
    path = tmp_path / "audit.log"
    writers = Writers()

    async def main() -> None:
        log = await AuditClient.open(path, writers.start)
        writers.last.freeze()
        for i in range(300):
            log.note("cut", {"i": i})
        await asyncio.sleep(0.05)
        assert log._writer is not None
        log._keeper.cancel()  # type: ignore[union-attr]
        log._writer._process = None  # as if the node had been killed: nobody kills the writer
        log._writer.end("the node died")
        writers.last.thaw()
        await asyncio.to_thread(writers.reap)

    asyncio.run(main())
    assert [record.fields["i"] for record in proven(path)] == list(range(300))
    assert writers.reap() == [0]


def test_a_new_node_waits_for_the_writer_of_the_old_one(tmp_path: Path) -> None:
    """The file is the old writer's until that has written everything."""
    path = tmp_path / "audit.log"
    writers = Writers()

    async def main() -> None:
        log = await AuditClient.open(path, writers.start)
        writers.last.freeze()
        log.note("cut", {"life": 1})
        await asyncio.sleep(0.05)
        assert log._writer is not None
        log._keeper.cancel()  # type: ignore[union-attr]
        log._writer._process = None
        log._writer.end("the node died")
        opening = asyncio.ensure_future(AuditClient.open(path, writers.start))
        await asyncio.sleep(0.2)
        assert not opening.done()
        writers.started[0].thaw()
        again = await opening
        await again.append("allow", {"life": 2})
        await again.close()
        await asyncio.to_thread(writers.reap)

    asyncio.run(main())
    assert [record.fields["life"] for record in proven(path)] == [1, 2]


def test_a_trail_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes do not write one trail."""
    monkeypatch.setattr(opening, "LOCK_S", 0.2)
    path = tmp_path / "audit.log"

    async def main() -> None:
        async with trail(path, Writers()):
            with pytest.raises(AuditUnavailable, match="another node"):
                await AuditClient.open(path, Writers().start)
            with pytest.raises(AuditUnavailable, match="another node"):
                AuditTrail.open(path)

    asyncio.run(main())


def test_a_lost_acknowledged_record_stops_the_trail(tmp_path: Path) -> None:
    """If what was acknowledged is gone when a writer starts again, nothing is allowed any more."""
    path = tmp_path / "audit.log"
    writers = Writers()

    async def main() -> None:
        async with trail(path, writers) as log:
            await log.append("allow", {})
            await log.append("allow", {})
            first = path.read_bytes().splitlines(keepends=True)[0]
            writers.last.kill()
            await until(lambda: log.state == "restarting")
            path.write_bytes(first)
            await until(lambda: "damaged" in log.failure)
            with pytest.raises(AuditUnavailable, match="damaged"):
                await log.append("allow", {})

    asyncio.run(main())
    assert len(proven(path)) == 1


LIMITED = """
import os, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
os.dup2(int(__import__("sys").argv[1]), {number})
from skerry.audit import opening, service
service.main()
"""


def test_a_disk_that_refuses_is_told_and_recovers(tmp_path: Path) -> None:
    """A write that fails (here: at the process's limit) refuses all until one succeeds again."""
    path = tmp_path / "audit.log"
    writers = Writers(LIMITED)

    async def main() -> None:
        async with trail(path, writers) as log:
            count = 0
            with pytest.raises(AuditUnavailable, match="File too large"):
                while True:
                    await log.append("allow", {"x": "y" * 1000})
                    count += 1
            assert 10 < count < 20
            assert log.state == "failing"
            begin = time.monotonic()
            with pytest.raises(AuditUnavailable, match="File too large"):
                await log.append("allow", {})
            assert time.monotonic() - begin < 0.1
            log.note("cut", {})
            raised = 1 << 30, 1 << 40
            prlimit(writers.last.process.pid, raised)
            await until(lambda: log.state == "running")
            await log.append("allow", {})

    asyncio.run(main())
    assert [record.event for record in proven(path)][-3:] == ["recovered", "cut", "allow"]


def prlimit(pid: int, limits: tuple[int, int]) -> None:
    """Change the longest file that a process may write."""
    import resource

    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def test_limits_are_stated_and_confessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One append too many is refused, one note too many is counted in a `lost` record."""
    monkeypatch.setattr(outbox_module, "MAX_NOTES", 5)
    monkeypatch.setattr(outbox_module, "MAX_WAITING", 3)
    path = tmp_path / "audit.log"
    writers = Writers()

    async def main() -> None:
        async with trail(path, writers) as log:
            writers.last.freeze()
            appends = [asyncio.ensure_future(log.append("allow", {})) for _ in range(4)]
            await asyncio.sleep(0)
            for _ in range(9):
                log.note("cut", {})
            await asyncio.sleep(0)
            writers.last.thaw()
            results = await asyncio.gather(*appends, return_exceptions=True)
            assert [type(result) for result in results] == [int, int, int, AuditUnavailable]
            assert "MAX_WAITING" in str(results[3])
            await until(lambda: len(proven(path)) >= 9)

    asyncio.run(main())
    found = proven(path)
    assert [record.event for record in found].count("cut") == 5
    assert [record.fields["count"] for record in found if record.event == "lost"] == [4]


class Liar:
    """A writer's process that says what it likes."""

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self.killed = False

    async def start(self, fd: int) -> "Liar":
        """Talk at once."""
        with socket.socket(fileno=os.dup(fd)) as sock:
            sock.send(packed(Begun()))
            sock.send(self._packet)
        return self

    def kill(self) -> None:
        """Be killed."""
        self.killed = True


HOSTILE = [
    b"\xff" * 40,
    b"\x91\x05",
    packed(Begun()),
    packed(Begin(1, 1, "", 1, "", 0)),
    packed(Written(1, 1, "0" * 64)),
    packed(Written(-5, 1, "0" * 64)),
    packed(Written(1, 2**60, "0" * 64)),
    b"\x94\x06\xcf" + b"\xff" * 8 + b"\x01\xa0",
    b"\x94\x07\x00\xa1x\xc2",
    b"\x94\x07\x01\xa1x\xc2",
    packed(Follow()),
    b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
]


@pytest.mark.parametrize("packet", HOSTILE)
def test_a_writer_that_talks_nonsense_is_given_up(
    tmp_path: Path, packet: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Malformed, impossible or unasked answers end it, and nothing is allowed by them."""
    monkeypatch.setattr(client_module, "START_S", 0.3)
    liar = Liar(packet)

    async def main() -> None:
        log: AuditClient | None = None
        with pytest.raises(AuditUnavailable):
            log = await AuditClient.open(tmp_path / "audit.log", liar.start)
            await log.append("allow", {})
        if log is not None:
            assert log.state == "restarting"
            await log.close()

    asyncio.run(main())
    assert liar.killed
    assert list(read_lines(tmp_path / "audit.log")) == []


def test_a_writer_gets_no_segment_before_its_time(tmp_path: Path) -> None:
    """Asking again and again would let retention remove the whole past: it is given up."""
    path = tmp_path / "audit.log"
    greedy = Liar(packed(Follow()))

    async def main() -> None:
        with pytest.raises(AuditUnavailable):
            log = await AuditClient.open(path, greedy.start, rotate=1 << 20, keep=1)
            await log.append("allow", {})

    asyncio.run(main())
    assert greedy.killed
    assert [name.name for name in tmp_path.iterdir()] == ["audit.log"]


ORDERS = [
    b"\xff",
    packed(Begun()),
    packed(Write(0, [])),
    packed(Begin(0, 0, "0" * 64, 1, "", 0)),
    b"\xdd\xff\xff\xff\xff",
    os.urandom(1000),
    b"x" * (MAX_MESSAGE - 100),
]


@pytest.mark.parametrize("packet", ORDERS)
@pytest.mark.parametrize("begun", [False, True])
def test_a_node_that_talks_nonsense_ends_the_writer(
    tmp_path: Path, packet: bytes, begun: bool
) -> None:
    """A broken order ends the process with an error; what was acknowledged before stays."""
    path = tmp_path / "audit.log"
    writers = Writers()

    async def main() -> bool:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                await writers.start(theirs.fileno())
            if begun:
                disk = HostDisk()
                fd = disk.open(path)
                begin = Begin(0, 0, "0" * 64, 1, "", 0)
                socket.send_fds(ours, [packed(begin)], [fd])
                disk.close(fd)
                assert await asyncio.to_thread(ours.recv, 1000) == packed(Begun())
            ours.send(packet)
            ours.shutdown(socket.SHUT_WR)
            await asyncio.to_thread(writers.reap)
        return True

    assert asyncio.run(main())
    harmless = begun and packet == packed(Write(0, []))
    assert writers.reap() == [0 if harmless else 1]


def test_random_packets_are_no_orders() -> None:
    """A thousand random packets: each is an order or a `WireError`, nothing else."""
    from skerry.errors import WireError

    chance = random.Random(7)
    for _ in range(1000):
        with contextlib.suppress(WireError):
            order(chance.randbytes(chance.randint(0, 60)))


def test_the_writer_does_not_end_by_a_signal_to_its_group(tmp_path: Path) -> None:
    """Ctrl-C in the shell reaches it too; it ends when its node has."""
    writers = Writers()

    async def main() -> None:
        async with trail(tmp_path / "audit.log", writers) as log:
            for number in (signal.SIGINT, signal.SIGTERM):
                writers.last.process.send_signal(number)
            await log.append("allow", {})

    asyncio.run(main())
    assert writers.reap() == [0]
    assert service.SOCKET == 3

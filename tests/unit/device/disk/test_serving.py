"""Disks served by real daemons in real jails; the test holds the machine's end."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skerry.channel.memory import Twin
from skerry.channel.stream import StreamBridges
from skerry.channel.transport import TcpPairs, passes_descriptor
from skerry.device.disk import acl, image, uses
from skerry.device.disk import use as use_
from skerry.device.disk.acl import XATTR
from skerry.device.disk.header import BadImage
from skerry.device.disk.image import DiskInUse
from skerry.device.disk.keys import KeyLost
from skerry.device.disk.uses import DiskUses
from skerry.device.helper import Helper
from skerry.errors import Denied, StateError
from skerry.node.bridges import AllBridges
from skerry.node.standing import ChannelEntry
from skerry.system.model import ResourceSpec
from skerry.xsm.explain import Refused
from tests.support.disks import MIB, Disks, client_of, daemon_of, disks, image_of, pid_of
from tests.support.machines import descendants
from tests.support.nbd import Nbd
from tests.support.sharing import Store, sharing

CANARY = b"canary-of-alice!" * 256


def served(work: Callable[[Disks], Awaitable[None]]) -> None:
    """Do the work where disks are served."""

    async def run() -> None:
        async with disks() as made:
            await work(made)

    asyncio.run(run())


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_disk_that_is_not_there_is_made_and_holds_what_is_written(transport: str) -> None:
    """A missing image with a size is made; what is written is read by the next use."""

    async def run(made: Disks) -> None:
        pairs = TcpPairs()
        if transport == "tcp":
            made.waiting = pairs.waiting
        maker = made.maker()
        use = await made.use(maker)
        client = client_of(use)
        assert (client.size, client.read_only) == (8 * MIB, False)
        assert client.write(MIB, CANARY) == 0
        assert client.flush() == 0
        use.cut()
        again = client_of(await made.use(maker))
        assert again.read(MIB, len(CANARY)) == CANARY
        pairs.close()

    served(run)


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_every_format_keeps_what_is_written(format_: str, encrypted: bool) -> None:
    """Raw and qcow2, plain and encrypted: the size is as asked, and encrypted is unreadable."""

    async def run(made: Disks) -> None:
        maker = made.maker(format=format_, encrypted=encrypted)
        use = await made.use(maker)
        client = client_of(use)
        assert client.size == 8 * MIB
        assert client.write(0, CANARY) == 0
        assert client.flush() == 0
        use.cut()
        assert (CANARY in image_of(maker)) is not encrypted
        assert client_of(await made.use(maker)).read(0, len(CANARY)) == CANARY

    served(run)


def test_a_read_only_use_cannot_write_whatever_its_machine_says() -> None:
    """A client that ignores the export's flag is refused; the control may write."""

    async def run(made: Disks) -> None:
        maker = made.maker()
        control = await made.use(maker)
        assert client_of(control).write(0, CANARY) == 0
        control.cut()
        client = client_of(await made.use(maker, read_only=True))
        assert client.read_only
        assert client.write(0, b"x" * 512) != 0
        client.send(client.TRIM, 0, 4096)
        assert client.answer()[0] != 0
        assert client.read(0, len(CANARY)) == CANARY

    served(run)


@pytest.mark.parametrize("how", ["only reads", "discards", "control"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_who_only_reads_holds_the_image_open_to_read(how: str, encrypted: bool) -> None:
    """Also where the image was made for it, by no descriptor of its daemon; the control writes."""

    async def run(made: Disks) -> None:
        maker = made.maker(discard=how == "discards", encrypted=encrypted)
        use = await made.use(maker, read_only=how == "only reads")
        modes = _modes(daemon_of(use), Path(maker.spec.file))
        assert (modes == {os.O_RDONLY}) is (how != "control")
        assert modes

    served(run)


def _modes(helper: Helper, path: Path) -> set[int]:
    """Return how a daemon and its jail have a file open."""
    found, file = set(), path.stat()
    for pid in descendants(pid_of(helper)):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(each.stat(), file):
                    told = Path(f"/proc/{pid}/fdinfo/{each.name}").read_text().split("flags:")[1]
                    found.add(int(told.split()[0], 8) & os.O_ACCMODE)
    return found


def test_what_is_thrown_away_is_read_while_it_is_used_and_then_nowhere() -> None:
    """Writes of a use with discard are read back by it; the image, the next use and the disk of
    the host have nothing of them."""

    async def run(made: Disks) -> None:
        maker = made.maker(discard=True)
        use = await made.use(maker)
        client = client_of(use)
        assert client.write(0, CANARY) == 0
        assert client.flush() == 0
        assert client.read(0, len(CANARY)) == CANARY
        assert list((made.folder / "overlays").iterdir()) == [], "it has no name any more"
        overlay = _held(daemon_of(use), "/overlay")
        assert overlay
        assert not any(_is_in(CANARY, path) for path in overlay)
        use.cut()
        assert CANARY not in image_of(maker)
        assert client_of(await made.use(maker)).read(0, 16) == bytes(16)

    served(run)


def _is_in(what: bytes, path: str) -> bool:
    return what in Path(path).read_bytes()


def _held(helper: Helper, part: str) -> list[str]:
    """Return what a daemon holds open of files whose path has this in it."""
    found = []
    for pid in descendants(pid_of(helper)):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if part in str(each.readlink()):
                    found.append(str(each))
    return found


def test_after_the_cut_no_byte_reaches_the_image() -> None:
    """What waits in a frozen daemon's queue at the cut is written never; the control is thawed."""

    async def run(made: Disks) -> None:
        for cut in (False, True):
            maker = made.maker(f"cut-{cut}".lower())
            use = await made.use(maker)
            client = client_of(use)
            assert client.write(0, bytes(512)) == 0
            pids = descendants(pid_of(daemon_of(use)))
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            client.send(client.WRITE, 0, len(CANARY), CANARY)
            if cut:
                use.cut()
            else:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
                assert client.answer()[0] == 0
            await asyncio.sleep(0.2)
            assert (CANARY in image_of(maker)) is not cut

    served(run)


def test_a_cut_under_load_is_the_end_of_all_writing() -> None:
    """The image does not change any more from the moment that `cut` returns."""

    async def run(made: Disks) -> None:
        maker = made.maker()
        use = await made.use(maker)
        client = client_of(use)
        piece = os.urandom(MIB)
        for number in range(8):
            client.send(client.WRITE, number * MIB, MIB, piece)
        use.cut()
        then = image_of(maker)
        await asyncio.sleep(0.5)
        assert image_of(maker) == then
        with pytest.raises((EOFError, ConnectionError)):
            while True:
                client.answer()

    served(run)


def test_one_that_writes_is_alone() -> None:
    """Beside a writer nobody else gets the disk, nor a writer beside readers; readers do."""

    async def run(made: Disks) -> None:
        maker = made.maker()
        writer = await made.use(maker)
        for read_only in (False, True):
            with pytest.raises(DiskInUse):
                await made.use(maker, "two", read_only)
        writer.cut()
        readers = [await made.use(maker, name, True) for name in ("one", "two")]
        with pytest.raises(DiskInUse):
            await made.use(maker, "three")
        for reader in readers:
            reader.cut()
        await made.use(maker, "three")

    served(run)


@pytest.mark.parametrize("book", [True, False], ids=["held", "control"])
def test_one_that_writes_is_alone_whatever_becomes_of_the_locks(
    monkeypatch: pytest.MonkeyPatch, book: bool
) -> None:
    """They are a daemon's to drop; without the node's own book nobody is refused then."""
    monkeypatch.setattr(image, "_lock", lambda *_: [])
    if not book:
        monkeypatch.setattr(DiskUses, "_need_room_for", lambda *_: None)

    async def run(made: Disks) -> None:
        maker = made.maker()

        async def refused(source: str, read_only: bool) -> bool:
            try:
                (await made.use(maker, source, read_only)).cut()
            except DiskInUse:
                return True
            return False

        writer = await made.use(maker)
        assert await refused("two", read_only=True) is book
        assert await refused("two", read_only=False) is book
        writer.cut()
        reader = await made.use(maker, read_only=True)
        assert not await refused("two", read_only=True)
        assert await refused("two", read_only=False) is book
        reader.cut()
        assert not await refused("two", read_only=False)

    served(run)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_use_that_goes_on_is_known_to_read_or_to_write(
    monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    """After a restart of the node as before it, by the journal and not by a daemon's locks."""
    monkeypatch.setattr(image, "_lock", lambda *_: [])

    async def run(made: Disks) -> None:
        use = await made.use(made.maker(), read_only=read_only)
        next_life = made.maker()
        found: Any = SimpleNamespace(uses_of={"data": next_life}.get)
        streams = StreamBridges()
        twins: dict[Twin, int] = {side: os.dup(fd) for side, fd in use.twins.items()}
        entry = ChannelEntry(1, "disk", "d/one/ab", "resource:data", "data", read_only, 1, 1, 0.0)
        adopted = AllBridges(streams, found).adopt(twins, daemon_of(use).process, entry)
        assert adopted is not None and adopted.is_whole()
        with pytest.raises(DiskInUse):
            await made.use(next_life, "two")
        if read_only:
            (await made.use(next_life, "two", read_only=True)).cut()
        else:
            with pytest.raises(DiskInUse):
                await made.use(next_life, "two", read_only=True)
        adopted.cut()
        await made.use(next_life, "two")
        streams.close()

    served(run)


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user has no access to give")
@pytest.mark.parametrize("where", ["image", "overlay", "access", "end of access"])
def test_a_bind_that_is_cancelled_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Wherever it is: no daemon, no identity that is not free again, no lock, no access."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(here: str) -> None:
        if here == where:
            begun.set()
            assert go_on.wait(20)

    def opened(spec: ResourceSpec, writes: bool) -> image.Image:
        wait("image")
        return image.open_image(spec, writes)

    def laid_out(maker: DiskUses, once: str) -> Path:
        wait("overlay")
        return overlay(maker, once)

    @contextlib.contextmanager
    def granted(path: Path, uid: int, wanted: int) -> Iterator[None]:
        wait("access")
        with acl.granted(path, uid, wanted):
            yield
        wait("end of access")

    overlay = DiskUses._overlay
    monkeypatch.setattr(uses, "open_image", opened)
    monkeypatch.setattr(DiskUses, "_overlay", laid_out)
    monkeypatch.setattr(use_, "granted", granted)

    async def run(made: Disks) -> None:
        maker = made.maker(discard=True)
        helpers: list[Helper] = []

        async def serve(*args: Any) -> Helper:
            helpers.append(await made.relays.serve(*args))
            return helpers[-1]

        start: Any = serve
        maker.means = maker.means._replace(start=start)
        using = asyncio.create_task(made.use(maker))
        assert await asyncio.to_thread(begun.wait, 20)
        using.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await using
        for helper in helpers:
            assert await asyncio.wait_for(helper.process.exited, 10) != 0
        assert len(helpers) == (where == "end of access")
        assert len(made.relays._free) == (where.endswith("access"))
        for path in (Path(maker.spec.file), made.folder):
            with pytest.raises(OSError):
                os.getxattr(path, XATTR)
        if where != "image":
            assert list((made.folder / "overlays").iterdir()) == []
        (await made.use(made.maker())).cut()

    before = len(list(Path("/proc/self/fd").iterdir()))
    served(run)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_disk_that_another_program_has_is_refused() -> None:
    """QEMU's own tools see that a disk is in use here, and are seen."""

    async def run(made: Disks) -> None:
        maker = made.maker()
        use = await made.use(maker)
        tool = await _qemu_io(maker.spec.file, "read 0 512")
        assert "lock" in tool
        use.cut()
        assert "lock" not in await _qemu_io(maker.spec.file, "read 0 512")
        process = await asyncio.create_subprocess_exec(
            "qemu-io", "-f", "raw", maker.spec.file, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin and process.stdout
        process.stdin.write(b"write 0 512\n")
        await process.stdout.readline()
        with pytest.raises(DiskInUse):
            await made.use(maker)
        process.kill()
        await process.wait()
        await made.use(maker)

    served(run)


async def _qemu_io(image: str, command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "raw", image, "-c", command,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    return said.decode()


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user has no access to give")
def test_access_to_the_image_is_given_for_the_start_only() -> None:
    """Once the daemon serves, the image and the folders above it are as they were."""

    async def run(made: Disks) -> None:
        maker = made.maker()
        use = await made.use(maker)
        for path in (Path(maker.spec.file), made.folder):
            with pytest.raises(OSError):
                os.getxattr(path, XATTR)
        assert stat.S_IMODE(os.stat(maker.spec.file).st_mode) == 0o600  # noqa: PTH116
        assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
        assert client_of(use).write(0, CANARY) == 0, "the control: it has the image all the same"

    served(run)


def test_no_descriptor_passes_a_disk_s_connection() -> None:
    """Neither the machine's end nor what waits for it takes a descriptor; a plain socket does."""

    async def run(made: Disks) -> None:
        listener, connected = made.waiting()
        accepted, _ = listener.accept()
        with listener, connected, accepted:
            assert not passes_descriptor(connected, accepted)
            assert not passes_descriptor(accepted, connected)
        one, other = socket.socketpair()
        with one, other:
            assert passes_descriptor(one, other)

    served(run)


def test_a_released_disk_has_nothing_of_what_was_on_it() -> None:
    """A canary is in the file before the release, and in no format after it; the space is used
    anew. An encrypted disk's key is gone."""

    async def run(made: Disks) -> None:
        for format_ in ("raw", "qcow2"):
            for encrypted in (False, True):
                name = f"{format_}-{encrypted}".lower()
                maker = made.maker(name, format=format_, encrypted=encrypted)
                use = await made.use(maker)
                client = client_of(use)
                assert client.write(MIB, CANARY) == 0
                assert client.flush() == 0
                with pytest.raises(StateError, match="is used by one"):
                    await maker.release()
                use.cut()
                opened = _open(maker)
                assert (CANARY in opened.read()) is not encrypted
                keys = set((made.folder / "keys").glob(f"{name}-*"))
                assert bool(keys) is encrypted
                await maker.release()
                opened.seek(0)
                assert CANARY not in opened.read(), "also through a descriptor from before"
                opened.close()
                assert not set((made.folder / "keys").glob(f"{name}-*"))
                fresh = client_of(await made.use(maker, "two"))
                assert CANARY not in fresh.read(0, 4 * MIB)
                if format_ == "qcow2" or not encrypted:  # else noise, under another key
                    assert fresh.read(MIB, 16) == bytes(16)

    served(run)


def test_a_broken_disk_can_be_released() -> None:
    """What is left of an image that no use gets any more goes like any other."""

    async def run(made: Disks) -> None:
        for encrypted in (False, True):
            maker = made.maker(f"broken-{encrypted}".lower(), encrypted=encrypted)
            (await made.use(maker)).cut()
            with _open(maker) as file:
                file.write(CANARY)
                file.truncate(5000)
            with pytest.raises(BadImage, match=r"is truncated|is not encrypted"):
                await made.use(maker)
            await maker.release()
            assert encrypted or image_of(maker) == bytes(5000)
        await made.use(maker)

    served(run)


def test_an_encrypted_disk_without_its_key_is_refused() -> None:
    """A lost key is said; nothing makes another and nothing is overwritten."""

    async def run(made: Disks) -> None:
        maker = made.maker(encrypted=True)
        (await made.use(maker)).cut()
        was = image_of(maker)
        (key,) = (made.folder / "keys").iterdir()
        kept = key.read_text()
        key.unlink()
        with pytest.raises(KeyLost, match="has no key"):
            await made.use(maker)
        key.write_text("ab" * 31 + "x")
        with pytest.raises(KeyLost, match="damaged"):
            await made.use(maker)
        assert image_of(maker) == was
        key.write_text(kept)
        await made.use(maker)

    served(run)


def _open(maker: DiskUses) -> io.BufferedRandom:
    return Path(maker.spec.file).open("r+b")


def test_a_limited_disk_is_slow() -> None:
    """`rate` holds writes back; the control without it does not."""

    async def run(made: Disks) -> None:
        took = {}
        for rate in (0, MIB):
            client = client_of(await made.use(made.maker(f"rate-{rate}", rate=rate)))
            begun = asyncio.get_running_loop().time()
            for number in range(3):
                assert await asyncio.to_thread(client.write, number * MIB, bytes(MIB)) == 0
            took[rate] = asyncio.get_running_loop().time() - begun
        assert took[MIB] > 1.0 > took[0]

    served(run)


def test_a_daemon_that_cannot_serve_says_why_and_leaves_nothing() -> None:
    """A broken image that its header does not betray is refused in the daemon's words."""

    async def run(made: Disks) -> None:
        maker = made.maker(encrypted=True)
        (await made.use(maker)).cut()
        with _open(maker) as file:
            file.seek(4096)
            file.write(os.urandom(256000))
        with pytest.raises(Denied, match="refused the disk"):
            await made.use(maker)
        assert maker.users == ()

    served(run)


def test_a_shared_disk_joins_only_whom_the_policy_lets_exchange() -> None:
    """A reader keeps out a writer that it may not exchange with; another one may write, and what
    it writes is read. Not shared, that one is refused too: the disk is in use."""

    async def scene(store: Store) -> None:
        async with disks() as made:
            await store.run("bob")
            await store.manager.touch(store.label("courier"), store.label("alice"))
            await store.run("courier", "auditor")
            for shared in (True, False):
                store.serve(made.maker(f"shared-{shared}".lower(), shared=shared))
                reading = await store.bind("bob", "ro")
                with pytest.raises(Refused):
                    await store.bind("courier", "rw")
                if shared:
                    writing = await store.bind("auditor", "rw")
                    ends = store.world.end("auditor", writing), store.world.end("bob", reading)
                    writer, reader = (Nbd(os.dup(end)) for end in ends)
                    assert writer.write(0, CANARY) == 0
                    assert reader.read(0, len(CANARY)) == CANARY
                    writer.close()
                    reader.close()
                else:
                    with pytest.raises(DiskInUse):
                        await store.bind("auditor", "rw")
                for channel in store.monitor.channels:
                    store.monitor.cut(channel.number)
                await store.monitor.settle()

    sharing(scene)

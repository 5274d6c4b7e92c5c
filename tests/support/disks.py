"""Disks served by jailed daemons, without a machine: the tests hold the machine's end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from skerry.channel.transport import unix_waiting
from skerry.device.disk.keys import Keys
from skerry.device.disk.use import DiskUse
from skerry.device.disk.uses import DiskUses, Means, Waiting
from skerry.device.helper import Helper
from skerry.jail.identity import open_pool, own
from skerry.node.helpers import Helpers
from skerry.node.relays import Relays
from skerry.supervisor.client import Process, SupervisorClient
from skerry.system.model import ResourceSpec
from tests.support.machines import cache
from tests.support.nbd import Nbd
from tests.support.supervisor import running_supervisor

MIB = 1 << 20
ACCEPTED = frozenset({"cgroup", "landlock"})


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only its owner may enter, as a home is."""
    folder = Path(tempfile.mkdtemp(prefix="skerry-disk-", dir="/var/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Disks:
    """What serves disks as a node does, with the node's parts and a real supervisor."""

    def __init__(self, client: SupervisorClient, folder: Path) -> None:
        self.folder = folder
        self.client = client
        self._pool = open_pool()
        take = self._pool.take if self._pool else lambda name: own()
        self.helpers = Helpers(client, take, ACCEPTED | (frozenset() if self._pool else {"uid"}))
        self.relays = Relays(self.helpers, take)
        self.uses: list[DiskUse] = []
        self.waiting: Waiting = lambda: unix_waiting(folder)
        self._channels = 0

    def maker(self, name: str = "data", **keys: object) -> DiskUses:
        """Return the maker of a disk in the folder: raw, of eight MiB where nothing is said."""
        spec = ResourceSpec(name, "disk", "disk", str(self.folder / f"{name}.img"), size=8 * MIB)
        spec = msgspec.structs.replace(spec, **keys)
        means = Means(
            self.relays.serve,
            self.waiting,
            cache() / "roots",
            self.folder / "overlays",
            Keys(self.folder / "keys"),
        )
        return DiskUses(means, spec)

    async def use(self, maker: DiskUses, source: str = "one", read_only: bool = False) -> DiskUse:
        """Use a disk: its daemon serves."""
        self._channels += 1
        use = maker.mint(read_only, source=source)
        self.uses.append(use)
        try:
            await use.open(self._channels)
        except BaseException:
            use.cut()
            raise
        return use

    async def close(self) -> None:
        """Cut what is left."""
        for use in self.uses:
            use.cut()
        while _clients:
            _clients.pop().close()
        await self.helpers.close()
        if self._pool:
            self._pool.close()


@contextlib.asynccontextmanager
async def disks() -> AsyncIterator[Disks]:
    """Serve disks in a private folder."""
    with private_folder() as folder:
        async with running_supervisor() as client:
            made = Disks(client, folder)
            try:
                yield made
            finally:
                await made.close()


def client_of(use: DiskUse) -> Nbd:
    """Be the machine of a use: negotiate over its end, which is closed elsewhere."""
    end = os.dup(use.ends["source"])
    use.handed_over()
    made = Nbd(end)
    _clients.append(made)
    return made


_clients: list[Nbd] = []


def daemon_of(use: DiskUse) -> Helper:
    """Return a use's daemon."""
    assert use._helper is not None
    return use._helper


def image_of(maker: DiskUses) -> bytes:
    """Return what the image holds on the host."""
    return Path(maker.spec.file).read_bytes()


def pid_of(helper: Helper) -> int:
    """Return the number of a daemon's process, which is its jail's first."""
    process = helper.process
    assert isinstance(process, Process)
    return process.pid

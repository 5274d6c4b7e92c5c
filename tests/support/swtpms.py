"""Real swtpms in their real jails, without a machine: this process is the QEMU."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from skerry.device.tpm import commands
from skerry.device.tpm.maker import Tpm, TpmUse
from skerry.device.tpm.program import swtpm_root
from skerry.device.tpm.state import Kept
from skerry.jail.identity import IdentityPool, open_pool, own
from skerry.node.helpers import Helpers
from skerry.node.relays import Relays
from skerry.node.tpms import StreamPairs
from skerry.supervisor.client import SupervisorClient
from tests.support.machines import cache
from tests.support.supervisor import running_supervisor

ACCEPTED = frozenset({"cgroup", "landlock"})


class Chips:
    """A folder for TPMs, and what starts their swtpms."""

    def __init__(self, folder: Path, relays: Relays, client: SupervisorClient) -> None:
        self.folder = folder
        self.relays = relays
        self.client = client
        for part in ("records", "keys", "states"):
            (folder / part).mkdir()

    def kept(self, name: str) -> Kept:
        """Return the files of a TPM."""
        return Kept(name, *(self.folder / part for part in ("records", "keys", "states")))

    def tpm(self, name: str) -> Tpm:
        """Return a maker, as a node makes it anew after each start."""
        roots = cache() / "share/roots"
        roots.mkdir(mode=0o755, parents=True, exist_ok=True)
        return Tpm(self.kept(name), lambda: swtpm_root(roots), self.relays.serve, StreamPairs())

    async def use(self, name: str, owner: str = "one", channel: int = 1) -> TpmUse:
        """Mint and open a use, by a maker of its own. If it fails, the use is cut."""
        return await opened(self.tpm(name), owner, channel)


async def opened(tpm: Tpm, owner: str = "one", channel: int = 1) -> TpmUse:
    """Mint and open a use. If it fails, the use is cut."""
    use = tpm.mint(False, source=owner)
    try:
        await use.open(channel)
    except BaseException:
        use.cut()
        raise
    return use


async def ended(use: TpmUse) -> None:
    """Cut a use and wait until its swtpm is gone."""
    helper = use._helper
    use.cut()
    if helper is not None:
        await helper.process.exited


def talk(use: TpmUse, command: bytes) -> bytes:
    """Send a command over the machine's end; nothing if there is no answer."""
    with socket.socket(fileno=os.dup(use.ends["source"])) as end:
        end.settimeout(10)
        with contextlib.suppress(OSError):
            end.sendall(command)
            return end.recv(commands.MAX_RESPONSE)
    return b""


@contextlib.asynccontextmanager
async def chips() -> AsyncIterator[Chips]:
    """Make a folder that the jails' uids can reach, and a supervisor."""
    pool = open_pool()
    taken = pool or IdentityPool(1 << 20, (1 << 20) + 1)
    with tempfile.TemporaryDirectory(prefix="skerry-tpm-", dir="/var/tmp") as name:
        folder = Path(name)
        os.chmod(name, 0o755)  # noqa: PTH101
        async with running_supervisor() as client:
            take = taken.take if pool else lambda name: own()
            helpers = Helpers(client, take, ACCEPTED | (set() if pool else {"uid"}))
            yield Chips(folder, Relays(helpers, take), client)
            await helpers.close()
    taken.close()

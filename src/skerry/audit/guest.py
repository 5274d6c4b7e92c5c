"""The audit replica in its guest: what comes over a one-way port, kept and shown.

The rules: it only reads its port, and nothing that it writes there would arrive; its status lies in
a file that is replaced whole after each piece. Whatever fails ends the guest, which the node then
starts anew with an empty replica.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import msgspec

from skerry.audit.replica import Replica, Store
from skerry.wire.port import connections

PORT = Path("/dev/virtio-ports/skerry.trail")
"""The port at which the trail comes in."""

RECORDS = Path("/var/replica")
"""The directory of the records."""

STATUS = Path("/run/skerry/replica")
"""The file that says how the replica stands."""


def main() -> None:
    """Replicate until something fails, and then switch the guest off."""
    try:
        replica = Replica(Store(RECORDS))
        _show(replica)
        for connection in connections(PORT):
            replica.connected()
            while piece := connection.read():
                replica.take(piece)
                _show(replica)
    except BaseException:
        traceback.print_exc()
        os.execv("/sbin/poweroff", ["poweroff", "-f"])


def _show(replica: Replica) -> None:
    new = STATUS.with_name(STATUS.name + ".new")
    new.write_bytes(msgspec.json.encode(replica.status))
    new.rename(STATUS)

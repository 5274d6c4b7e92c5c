"""The policy manager in a guest of its own: the engine of `service`, behind a port.

The rules this module keeps: each coming of the node begins with nothing, and its first order is
`Begin`; whatever else ends the service ends the guest, which the node then starts anew.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from pathlib import Path

from skerry.policy.service import serve
from skerry.wire.port import connections

PORT = Path("/dev/virtio-ports/skerry.manager")
"""The port that leads to the node."""


def main() -> None:
    """Serve until something fails, and then switch the guest off."""
    try:
        for connection in connections(PORT):
            with contextlib.suppress(OSError):  # the node went while it was being answered
                serve(connection.read, connection.write)
    except BaseException:
        traceback.print_exc()
        os.execv("/sbin/poweroff", ["poweroff", "-f"])

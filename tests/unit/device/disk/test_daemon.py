"""What a hostile storage daemon says is a refusal of its disk and nothing else."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from skerry.device.disk.daemon import Control, DiskFailed, Plan

OVERLAID = Plan(qcow2=False, writes=False, once="key")
JOBS = [{"status": "concluded"}]
SIZE = {"node-name": "base", "image": {"virtual-size": 4096}}


def _node(image: object) -> list[object]:
    return [{"node-name": "base", "image": image}]


@pytest.mark.parametrize(
    "said",
    [
        *("text", 7, None, [None], {}, []),
        *map(_node, ([], "text", 7, None, {"virtual-size": []})),
    ],
    ids=str,
)
def test_a_daemon_that_does_not_say_how_large_the_disk_is_is_refused(said: object) -> None:
    """Whatever it says in place of it. The control says it, and is served."""

    async def run(nodes: object) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)

        async def daemon() -> None:
            reading, writing = await asyncio.open_connection(sock=theirs)
            writing.write(b"{}\n")
            while line := await reading.readline():
                answers = {"query-named-block-nodes": nodes, "query-jobs": JOBS}
                answer = answers.get(json.loads(line)["execute"], {})
                writing.write(json.dumps({"return": answer}).encode() + b"\n")
            writing.close()

        control, serving = Control(ours), asyncio.create_task(daemon())
        try:
            await control.serve(OVERLAID)
        finally:
            control.close()
            await serving

    with pytest.raises(DiskFailed, match="how large"):
        asyncio.run(run(said))
    asyncio.run(run([SIZE]))

"""The node killed at random points, its writer with it or not: the trail holds what it knew."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skerry.audit.chain import SEGMENT, verify
from skerry.audit.read import first_kept, read_lines
from skerry.audit.record import parse_record

NODE = """
import asyncio, itertools, os, sys
from pathlib import Path
from skerry.audit.client import AuditClient
from tests.support.audit import Writers

async def main():
    writers = Writers()
    log = await AuditClient.open(Path(sys.argv[1]), writers.start, rotate=20_000, keep=100_000)
    print("writer", writers.last.process.pid, flush=True)
    marks = itertools.count(int(sys.argv[2]))

    async def appender():
        while True:
            mark = next(marks)
            log.note("cut", {"note": mark})
            n = await log.append("allow", {"mark": mark})
            os.write(1, b"%d %d\\n" % (n, mark))

    await asyncio.gather(*(appender() for _ in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_node_loses_no_acknowledged_record(tmp_path: Path, seed: int) -> None:
    """Life after life ends by SIGKILL while segments are closed. Every record that a node had
    told of, and every note before it, is in the trail once, and each life continues the chain."""
    path = tmp_path / "audit.log"
    chance = random.Random(seed)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    acknowledged: dict[int, int] = {}
    for life in range(8):
        argv = [sys.executable, "-c", NODE, str(path), str(life * 1_000_000)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as node:
            assert node.stdout is not None
            writer = int(node.stdout.readline().split()[1])
            time.sleep(chance.uniform(0.0, 0.3))
            if chance.random() < 0.5:
                os.kill(writer, signal.SIGKILL)
                time.sleep(chance.choice([0.0, 0.002]))
            node.kill()
            for line in node.stdout.read().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    number, mark = map(int, line.split())
                    acknowledged[number] = mark
    deadline = time.monotonic() + 5
    while Path(f"/proc/{writer}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lines = list(read_lines(path))
    proof = verify(lines, first=first_kept(path))
    assert not proof.broken, proof
    found = [parse_record(line) for line in lines]
    marks = {record.n: record.fields["mark"] for record in found if record.event == "allow"}
    assert acknowledged.items() <= marks.items()
    notes = [record.fields["note"] for record in found if record.event == "cut"]
    assert len(notes) == len(set(map(str, notes)))
    assert set(map(str, marks.values())) <= set(map(str, notes))
    assert len(acknowledged) > 1000
    assert first_kept(path) == 1
    assert sum(record.event == SEGMENT for record in found) > 8

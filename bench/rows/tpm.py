"""A TPM: what a quote takes in the guest."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import statistics
import subprocess
import tempfile
from collections.abc import Iterator

from bench.bare import BareQemu
from bench.measure import Row, say, versus
from bench.place import POLICY, home, image, run, system
from skerry.device.tpm import commands
from skerry.errors import SkerryError
from skerry.image.minimal import CMDLINE
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.tsc import tsc_khz
from tests.support.cli import Cli

QUOTES, BATCHES = 10, 20
WAIT_S = 60.0

CHIP = """
[resources.chip]
kind = "tpm"
label = "bench-chip"
"""
LABEL = """
[resources.bench-chip]
ste = "work"
"""


def quote() -> Row:
    """Quotes by the attestation key, against an unjailed swtpm wired to a QEMU by hand.

    By hand is QEMU's driver for an emulator, with its control channel. Every measure boots a
    machine of its own and takes the median of `BATCHES` of `QUOTES`, by the guest kernel's clock.
    The shell in the guest makes no process meanwhile. The board is `pc`: a microvm's kernel looks
    for an answer at its ticks, every 4 ms, and one that has just missed one measures that.
    """
    image()
    with home(
        system(["one"], 'autostart = false\naccel = "tcg"\nboard = "pc"\nuses = ["chip"]') + CHIP
    ) as cli:
        (cli.home / "policy.toml").write_text(POLICY + LABEL)
        run(cli, "up", str(cli.home / "system.toml"), "--detach")
        say(f"every measure boots a machine and takes {BATCHES} times {QUOTES} quotes")
        _ours(cli)
        return versus(
            "tpm-quote-vs-bare", "ms", lambda: _ours(cli), _bare, "<= 1.1", runs=10, seconds=600
        )


def _ours(cli: Cli) -> float:
    run(cli, "start", "one")
    try:
        return _milliseconds(run(cli, "exec", "one", "--", "sh", "-c", _script()))
    finally:
        run(cli, "kill", "one")


def _bare() -> float:
    with _swtpm() as control, contextlib.closing(BareQemu(_spec(), tpm=control)) as machine:
        return asyncio.run(_bare_quotes(machine))


async def _bare_quotes(machine: BareQemu) -> float:
    agent = await machine.agent()
    said = bytearray()
    # As the node does when it makes a TPM; a guest's first key has this handle.
    made = [commands.create_key(), commands.keep_key(0x80000000)]
    script = "".join(f"exec 3<>/dev/tpm0; {_once(c)}; exec 3>&-; " for c in made) + _script()
    code = await agent.run(
        ["sh", "-c", script], output=lambda _, data: said.extend(data), timeout_s=WAIT_S
    )
    if code:
        raise SkerryError(f"a command in a guest failed ({code}): {bytes(said)!r}")
    return _milliseconds(said.decode())


def _spec() -> QemuSpec:
    files = image()
    return QemuSpec(
        name="one",
        label="bench",
        kernel=files.bzimage,
        bzimage=files.bzimage,
        initrd=files.initrd,
        cmdline=CMDLINE,
        board="pc",
        tsc_khz=tsc_khz(),
        tpm=True,
    )


@contextlib.contextmanager
def _swtpm() -> Iterator[socket.socket]:
    """Run a swtpm as by hand, and give the other end of its control channel."""
    near, far = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="skerry-bench-", dir="/var/tmp") as folder:
        argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}"]
        argv += ["--ctrl", f"type=unixio,clientfd={far.fileno()}"]
        process = subprocess.Popen(argv, pass_fds=[far.fileno()], stderr=subprocess.DEVNULL)
        far.close()
        try:
            yield near
        finally:
            process.kill()
            process.wait()


def _octal(data: bytes) -> str:
    """Return bytes as a shell's `printf` takes them."""
    return "".join(f"\\{byte:03o}" for byte in data)


def _once(command: bytes) -> str:
    return f"printf '{_octal(command)}' >&3; read -r -n 1 x <&3"


def _script() -> str:
    """Return the script that quotes again and again, and says when it began and ended."""
    fine = "until grep -q 'hres_active *: 1' /proc/timer_list; do sleep 1; done"
    now = "now() { { read a; read a; read a; } </proc/timer_list; echo $a; }"
    command = commands.quote(bytes(20), (0, 7, 10))
    check = f"printf '{_octal(command)}' >&3; dd bs=4096 count=1 <&3 2>/dev/null | od -An -tx1"
    batch = f"i=0; while [ $i -lt {QUOTES} ]; do {_once(command)}; i=$((i+1)); done; now"
    loop = f"n=0; while [ $n -lt {BATCHES} ]; do {batch}; n=$((n+1)); done"
    return f"{fine}; {now}; exec 3<>/dev/tpm0; {check}; {_once(command)}; now; {loop}; {check}"


def _milliseconds(said: str) -> float:
    """Read what `_script` said. Raises `SkerryError` where there were no quotes."""
    times = [int(found) for found in re.findall(r"^now at (\d+) nsecs", said, re.MULTILINE)]
    good = re.findall(r"^ 80 02 00 00 00 [0-9a-f]{2} 00 00 00 00 ", said, re.MULTILINE)
    if len(times) != BATCHES + 1 or len(good) != 2:
        raise SkerryError(f"the guest's TPM did not quote: {said!r}")
    batches = [end - begin for begin, end in itertools.pairwise(times)]
    return statistics.median(batches) / 1e6 / QUOTES

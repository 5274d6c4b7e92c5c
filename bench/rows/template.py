"""The start of a domain from a template, against a bare restore and against libvirt.

An answer is an answer of the guest's agent; a cold guest's is its first line on the console.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Iterator

from bench.bare import BareQemu
from bench.libvirt import Libvirt, libvirt
from bench.measure import Row, interleaved, say, single, versus
from bench.node import RunningNode, running
from bench.place import run, system, up
from bench.processes import kept_mb
from bench.rows.start import DOMAIN, started
from skerry.errors import SkerryError
from skerry.machine.qemu.cloned import Clone
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.template import NAME, Template
from skerry.node import paths
from skerry.node import template_store as store
from tests.support.machines import descendants

CLONES = 16
CLONE_MB = 128
REST_S = 10.0
"""How long the clones are left to themselves before their memory is counted."""

ROUNDS = 20


def extra() -> Row:
    """What decision, record, jail and awakening add to a restore by hand, in ms."""
    with _node(template=True) as node:
        spec, template = node.spec(DOMAIN), _template()
        node.run(node.kill(DOMAIN))
        say(f"{ROUNDS} starts of each")
        ours, bare = interleaved(lambda: _warm(node), lambda: _bare(spec, template), runs=ROUNDS)
    say(f"ours {statistics.median(ours) * 1e3:.0f} ms, bare {statistics.median(bare) * 1e3:.0f} ms")
    more = [(mine - theirs) * 1e3 for mine, theirs in zip(ours, bare, strict=True)]
    return single("warm-start-extra-ms", "ms", more, "<= 100")


def warm_versus_libvirt() -> Row:
    """Starts a second, one at a time, from a template; against `virsh start`."""
    with _node(template=True) as node, _other(node) as other:
        say("20 starts of each: two minutes")
        return versus(
            "warm-start-vs-libvirt",
            "1/s",
            lambda: 1 / _warm(node),
            lambda: 1 / other.start(),
            ">= 20",
            runs=20,
        )


def warm_command() -> Row:
    """The command `skerry start` of a real service, with its own interpreter, until it returns."""
    keys = "autostart = false\ntemplate = true"
    with up(system([DOMAIN], keys)) as cli:
        times = []
        for _ in range(ROUNDS + 1):  # the first makes the template
            begin = time.perf_counter()
            run(cli, "start", DOMAIN)
            times.append((time.perf_counter() - begin) * 1e3)
            run(cli, "exec", DOMAIN, "--", "true")
            answered = (time.perf_counter() - begin) * 1e3
            run(cli, "kill", DOMAIN)
    say(f"with another command, `skerry exec {DOMAIN} true`: {answered:.0f} ms at the last")
    return single("warm-start-command-ms", "ms", times[1:], "shown")


def cold_versus_libvirt() -> Row:
    """A start without a template; against `virsh start`."""
    with _node(template=False) as node, _other(node) as other:
        say("24 starts of each: four minutes")
        return versus(
            "cold-start-vs-libvirt", "s", lambda: started(node), other.start, "<= 0.7", runs=24
        )


def clones_pss() -> Row:
    """The memory of idle clones of one template, jails, template and all."""
    if os.getuid():
        raise SkerryError("jails are closed to others", fix="run this row as root")
    names = [f"clone-{number}" for number in range(1, CLONES + 1)]
    keys = f'memory = "{CLONE_MB}M"\ntemplate = true'
    with running(system(names, keys)) as node:
        for name in names:
            node.run(_answer(node, name))
            if not isinstance(node.machine(name), Clone):
                raise SkerryError(f"{name} is no clone")
        time.sleep(REST_S)
        pids = [pid for name in names for pid in descendants(node.machine(name).pid)]
        return single("clones-pss-mb", "MB", [kept_mb(pids, NAME)], "<= 450")


@contextlib.contextmanager
def _node(*, template: bool) -> Iterator[RunningNode]:
    """Give a node whose domain runs, for the first time."""
    keys = f"autostart = false\ntemplate = {str(template).lower()}"
    with running(system([DOMAIN], keys)) as node:
        say("one start to warm up")
        node.run(_answer(node))
        yield node


@contextlib.contextmanager
def _other(node: RunningNode) -> Iterator[Libvirt]:
    """Give a libvirt with the same domain, started once to warm up; ours is ended."""
    with libvirt(node.spec(DOMAIN)) as other:
        node.run(node.kill(DOMAIN))
        other.start()
        yield other


def _template() -> Template:
    [one] = store.stored(paths.templates_dir())
    assert one.manifest is not None
    return store.read(paths.templates_dir(), one.manifest)


async def _answer(node: RunningNode, name: str = DOMAIN) -> None:
    await node.start(name)
    await node.agent(name)


def _warm(node: RunningNode) -> float:
    begin = time.perf_counter()
    node.run(_answer(node))
    seconds = time.perf_counter() - begin
    node.run(node.kill(DOMAIN))
    return seconds


def _bare(spec: QemuSpec, template: Template) -> float:
    begin = time.perf_counter()
    machine = BareQemu(spec, template=template)
    try:
        machine.restore(template.state)
        asyncio.run(machine.answered())
        return time.perf_counter() - begin
    finally:
        machine.close()

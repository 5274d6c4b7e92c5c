"""Switches for tests: a Flask policy that is a list of pairs, and switches without a jail."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection

from skerry.channel.stream import StreamBridges
from skerry.device.helper import Helper, Program
from skerry.device.switch import engine
from skerry.device.switch.uses import SwitchUses
from skerry.errors import SupervisorError
from skerry.jail.identity import Identity
from skerry.monitor.domain import Resource
from skerry.node.helpers import command
from tests.support.monitor import World
from tests.support.monitor import label as toy_label
from tests.support.relays import SOURCE, BareRelay

Pair = tuple[str, str]

NAMES = "one", "two", "three", "apart"

ALL: Collection[Pair] = (("one", "two"), ("one", "three"), ("two", "three"))
"""The first three may all talk with one another, and `apart` with nobody."""

_HEAD = """
class domain
class event
class grant
class domain2
class resource
class security
sid xenboot
sid xen
sid dom0
sid domio
sid domxen
sid unlabeled
sid security
sid ioport
sid iomem
sid irq
sid device
sid domU
sid domDM
class domain { create transition unpause pause destroy shutdown getdomaininfo }
class event { create bind send }
class grant { map_read map_write }
class domain2 { relabelfrom relabelto }
class resource { add use }
class security { load_policy setbool }
attribute guest_type;
attribute end_type;
type xen_t;
type security_t;
type dom0_t;
type dom0_end, end_type;
type lan_t;
"""

_RULES = """
allow dom0_t guest_type:domain { create transition unpause pause destroy shutdown getdomaininfo };
allow dom0_t guest_type:domain2 { relabelfrom relabelto };
allow dom0_t guest_type:resource add;
allow dom0_t security_t:security { load_policy setbool };
allow guest_type guest_type:domain transition;
type_transition dom0_t guest_type:event dom0_end;
allow dom0_t dom0_end:event { create send };
allow dom0_end guest_type:event bind;
allow end_type dom0_t:event bind;
allow dom0_t guest_type:grant { map_read map_write };
allow guest_type dom0_t:grant { map_read map_write };
allow guest_type lan_t:resource use;
allow guest_type lan_t:grant { map_read map_write };
"""

_SIDS = {"dom0": "dom0_t", "security": "security_t"}
_ALL_SIDS = (
    *("xenboot", "xen", "dom0", "domio", "domxen", "unlabeled", "security", "ioport"),
    *("iomem", "irq", "device", "domU", "domDM"),
)


def label(name: str) -> str:
    """Return the label of a domain of this name, or of the switch `lan`."""
    return f"system_u:system_r:{name}_t"


def policy(pairs: Collection[Pair] = ALL) -> str:
    """Return the policy: everyone may use `lan`, and these pairs may talk both ways."""
    lines = [_HEAD]
    types = ["xen_t", "security_t", "dom0_t", "dom0_end", "lan_t"]
    for name in NAMES:
        lines.append(f"type {name}_t, guest_type;\ntype {name}_end, end_type;")
        types += [f"{name}_t", f"{name}_end"]
    lines.append(f"role system_r;\nrole system_r types {{ {' '.join(types)} }};")
    lines.append(_RULES)
    for name in NAMES:
        lines.append(f"type_transition {name}_t dom0_t:event {name}_end;")
        lines.append(f"allow {name}_t {name}_end:event {{ create send }};")
    for one, other in {*pairs, *((b, a) for a, b in pairs)}:
        lines.append(f"type_transition {one}_t {other}_t:event {one}_end;")
        lines.append(f"allow {one}_end {other}_t:event bind;")
        lines.append(f"allow {one}_t {other}_t:grant {{ map_read map_write }};")
    lines.append("user system_u roles system_r;")
    lines += [f"sid {sid} system_u:system_r:{_SIDS.get(sid, 'xen_t')}" for sid in _ALL_SIDS]
    return "\n".join(lines) + "\n"


def system(uses: str = 'uses = ["lan"]', more: str = "", names: Collection[str] = NAMES[:3]) -> str:
    """Return a system file whose domains use the switch `lan`; `policy.conf` lies beside it."""
    domains = "".join(f'[domains.{name}]\nlabel = "{label(name)}"\n{uses}\n' for name in names)
    return (
        'name = "switched"\npolicy = "policy.conf"\n[jail]\naccept-missing = ["cgroup", "swap"]\n'
        f'[resources.lan]\nkind = "switch"\nlabel = "{label("lan")}"\n{domains}{more}'
    )


class BareSwitches:
    """Starts the processes of switches without a jail; `started` holds all of them."""

    def __init__(self) -> None:
        self.started: list[BareRelay] = []
        self.gate: asyncio.Event | None = None
        self.fails = False

    async def start(
        self,
        channel: int,
        program: Program,
        prepared: Callable[[Identity], Awaitable[None]] | None = None,
    ) -> Helper:
        """Start one: `device.helper.Start`. It waits for `gate` and fails where `fails` says."""
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise SupervisorError("nothing is started here")
        made = _spawn(program.fds[engine.CONTROL])
        self.started.append(made)
        return Helper(made, 0)

    async def ended(self) -> None:
        """Wait until all have ended."""
        await asyncio.gather(*(process.exited for process in self.started))


def _spawn(control: int) -> BareRelay:
    lent = fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, 10)
    wiring = f"import os; os.dup2({lent}, {engine.CONTROL}); os.close({lent}); "
    argv = command(engine.__name__, SOURCE)
    argv = [sys.executable, *argv[1:-1], wiring + argv[-1]]
    process = subprocess.Popen(argv, pass_fds=[lent], stdin=subprocess.DEVNULL)
    os.close(lent)
    return BareRelay(process)


def add_switch(world: World, name: str, switches: BareSwitches) -> SwitchUses:
    """Let a world have a switch named like its label."""
    made: list[Resource] = []
    argv = command(engine.__name__)
    uses = SwitchUses(name, lambda: made[0], switches.start, argv, StreamBridges())
    made.append(Resource(name, toy_label(name), "switch", uses))
    world.monitor.resources[name] = made[0]
    uses.meet(world.monitor)
    world.monitor.withdrawn = uses.coalition.withdrawn
    return uses

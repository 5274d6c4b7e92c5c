"""Lives that are killed one after the other, and what must be true after each kill.

    python -m tests.fault.storm --seed N --kills N [--mutation NAME] [--verbose]

runs one world to its end and prints what it did as JSON; exit code 1 and the reason if a law does
not hold. The same seed asks the same commands and draws the same moments; how the threads
interleave is the host's.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from skerry.audit.disk import Disk
from skerry.audit.writer import AuditTrail
from skerry.errors import AuditUnavailable, SkerryError
from skerry.label import Label
from skerry.machine.simulator.disk import SimulatedDisk
from skerry.monitor.domain import ALIVE
from skerry.node.jails import Identities
from skerry.node.opening import Opened, World, open_node
from skerry.node.reconcile import Reconciler
from skerry.policy.source import NewPolicy
from skerry.supervisor.client import SupervisorClient
from skerry.system.model import System
from skerry.wire.system_files import PolicyFile, SystemFiles
from tests.fault.inside import Trail, in_process
from tests.fault.killing import Killer, Life, MortalDisk
from tests.fault.laws import Laws
from tests.fault.mutations import MUTATIONS
from tests.fault.oracle import (
    ALARM,
    DECLARED,
    DOMAINS,
    POLICIES,
    RESOURCE,
    Fact,
    Ledger,
    policy_text,
    system_text,
)
from tests.fault.outside import KeptMachine, KeptMachines, NoIdentities, Outside, Store
from tests.fault.serving import KeptUses
from tests.support.trail import Broken

WORKERS = 3
COMMANDS = 10
"""Commands of each worker in one life, if it is not killed before."""


class Storm:
    """One world: what outlives the nodes, the node that lives, and the commands it is given."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.folder = folder
        self.outside = Outside()
        self.disk = SimulatedDisk(seed)
        self.ledger = Ledger()
        self.laws = Laws(self.outside, self.disk, folder)
        self.outside.moment = self.ledger.moment
        self.later = 0.0
        self._killer = Killer()
        self._aim = ""
        self.opened: Opened | None = None
        self.counts: collections.Counter[str] = collections.Counter()
        (folder / "system.toml").write_text(system_text())
        (folder / "wide.toml").write_text(policy_text("wide"))
        os.environ["SKERRY_HOME"] = str(folder)

    def clock(self) -> float:
        """Return the monotonic clock of this world."""
        return time.monotonic() + self.later

    def run(self, kills: int) -> None:
        """Kill so many nodes, one after the other. Raises `Broken` if a law does not hold."""
        while self.counts["kills"] < kills:
            killer = Killer()
            self.outside.happened = killer.happened
            disk = MortalDisk(self.disk, killer)
            if self.chance.random() < 0.25:
                self._arm(killer, 2500)
            life = Life(lambda disk=disk: self._begin(disk), killer)  # type: ignore[misc]
            if life.began():
                killer.disarm()
                # It may have been too late to disarm.
                if life.do(self._check()):
                    self.ledger = Ledger()
                    self.outside.moment = self.ledger.moment
                    self._killer, self._aim = killer, ""
                    if self.chance.random() < 0.4:
                        self._aim = self.chance.choice(AIMS)
                    elif self.chance.random() < 0.9:
                        self._arm(killer, 6000)
                    if life.do(self._work()):
                        self.counts["idle"] += 1
            else:
                self.counts["in recovery"] += 1
            life.end()
            disk.end()
            self.disk.faults.clear()
            self.disk.crash()
            self.outside.release()
            self.counts["kills"] += 1
            if self.chance.random() < 0.3:
                self.later += self.chance.choice([0.5, 5.0, 40.0])

    def _arm(self, killer: Killer, lines: int) -> None:
        """Kill somewhere in the next lines, as often right behind an effect on the outside."""
        if self.chance.random() < 0.5:
            killer.arm(self.chance.randrange(lines))
        else:
            killer.arm(self.chance.choice([0, 3, 10, 40, 150]), self.chance.randrange(40))

    async def _begin(self, disk: MortalDisk) -> None:
        exits = contextlib.AsyncExitStack()  # never left: nothing of a killed node is closed

        def trail(path: Path, disk: Disk) -> AuditTrail:
            made = Trail.open(path, disk, 0.01)
            assert isinstance(made, Trail)
            made.acknowledged = self.laws.acknowledged
            return made

        def machines(
            system: System, store: SupervisorClient, identities: Identities
        ) -> KeptMachines:
            return KeptMachines(self.outside, system, store, identities)

        world = World(
            disk,
            self.clock,
            lambda *_: NoIdentities(),
            machines,
            trail,
            in_process,
            lambda *_: {"disk": lambda spec, made: KeptUses(self.outside)},
        )
        path = self.folder / "system.toml"
        self.opened = await open_node(path, Store(self.outside), lambda event: None, exits, world)
        if self.opened.recovery is not None:
            await self.opened.recovery.adopt()

    async def _check(self) -> None:
        assert self.opened is not None
        await self.laws.check(self.opened, self.ledger, self.clock)
        self.counts.update(self.laws.seen)

    async def _work(self) -> None:
        seeds = [self.chance.random() for _ in range(WORKERS)]
        await asyncio.gather(*(self._worker(random.Random(seed)) for seed in seeds))

    async def _worker(self, chance: random.Random) -> None:
        for _ in range(COMMANDS):
            await self._command(chance)

    async def _command(self, chance: random.Random) -> None:
        assert self.opened is not None
        node, monitor = self.opened.node, self.opened.node.monitor
        owner = node.setup.owner
        kind = chance.choices(*zip(*COMMAND_WEIGHTS.items(), strict=True))[0]
        if self._aim and chance.random() < 0.15:
            self._killer.arm(chance.randrange(600))
            kind, self._aim = self._aim, ""
        name, other = self._pick(kind, chance)
        match kind:
            case "start":
                await self._do(
                    "start", node.start(owner, name), lambda s: _bound(s.bound), name=name
                )
            case "stop":
                await self._do("stop", node.stop(name, 1), name=name)
            case "kill":
                await self._do("kill", node.kill(name), name=name)
            case "pause":
                await self._do("pause", monitor.pause(owner, name), name=name, state="paused")
            case "resume":
                await self._do("resume", monitor.resume(owner, name), name=name, state="running")
            case "connect":
                await self._connect(owner, name, other, chance)
            case "use":
                await self._connect(owner, name, RESOURCE, chance)
            case "burst":
                await asyncio.gather(*(self._connect(owner, name, other, chance) for _ in range(4)))
            case "cut":
                numbers = [channel.number for channel in monitor.channels]
                if numbers:
                    number = chance.choice(numbers)

                    async def cut() -> int:
                        return monitor.cut(number)

                    await self._do("cut", cut(), number=number)
            case "relabel":
                label = chance.choice(["r", "b", "rb", "n"])
                await self._do("relabel", node.relabel(owner, name, label), name=name, label=label)
            case "loads":
                two = (self._load(owner, chance) for _ in range(2))
                await asyncio.gather(*two, self._try(owner, chance))
            case "load":
                await self._load(owner, chance)
            case "dry-run":
                await self._try(owner, chance)
            case "alarm":
                await self._do("alarm", node.alarm(owner, "fire"), names=ALARM)
            case "reconcile":
                await self._reconcile(chance)
            case "die":
                await self._die(name)
            case "flood":
                self._flood(chance)
            case "sick":
                self.disk.faults[chance.choice(["append", "sync", "allocate"])] = 28
                await asyncio.gather(self._load(owner, chance), asyncio.sleep(0.005))
                self.disk.faults.clear()

    async def _load(self, owner: Label, chance: random.Random) -> None:
        assert self.opened is not None
        policy, evict = chance.choice(["wide", "wide", *POLICIES]), chance.random() < 0.4
        change = NewPolicy(f"{policy}.toml", policy_text(policy).encode())
        await self._do(
            "load",
            self.opened.node.load("policy_load", owner, change, what=policy, evict=evict),
            lambda done: done["generation"],
            policy=policy,
            evict=evict,
        )

    async def _reconcile(self, chance: random.Random) -> None:
        """Give the node another form of its file: what it did of that is open to the oracle."""
        assert self.opened is not None
        node, evict = self.opened.node, chance.random() < 0.4
        declared = chance.choice(list(DECLARED))
        path = str(self.folder / "wide.toml")
        files = SystemFiles(
            str(self.folder / "system.toml"),
            system_text(declared),
            (PolicyFile(path, policy_text("wide").encode()),),
        )
        self.ledger.ask("load", policy="wide", evict=evict)
        for name, label in DOMAINS.items():
            self.ledger.ask("relabel", name=name, label=label)
        self.ledger.ask("connect", ends=DECLARED[declared], for_s=None)
        for channel in node.monitor.channels:
            if channel.port in DECLARED:
                self.ledger.ask("cut", number=channel.number)
        reconciler = Reconciler(node)
        try:
            await reconciler.run(os.getuid(), files, lambda event: None, evict=evict, dry_run=False)
            self.counts["reconcile"] += 1
        except SkerryError:
            self.counts["refused"] += 1

    async def _try(self, owner: Label, chance: random.Random) -> None:
        assert self.opened is not None
        policy = chance.choice(list(POLICIES))
        change = NewPolicy(f"{policy}.toml", policy_text(policy).encode())
        work = self.opened.node.load("policy_load", owner, change, what=policy, dry_run=True)
        await self._do("dry-run", work)

    def _pick(self, kind: str, chance: random.Random) -> list[str]:
        """Return two domains with which a command mostly makes sense."""
        assert self.opened is not None
        running = {d.name for d in self.opened.node.monitor.domains.values() if d.state in ALIVE}
        names = [n for n in DOMAINS if (n in running) != (kind == "start")]
        if len(names) < 2 or chance.random() < 0.1:
            names = list(DOMAINS)
        return chance.sample(names, 2)

    async def _connect(self, owner: Label, name: str, other: str, chance: random.Random) -> None:
        assert self.opened is not None
        for_s = chance.choice([None, None, 3.0, 30.0])
        # A domain has a resource more than once only under other names than the resource's own.
        port = f"use-{chance.randrange(1 << 32)}" if other == RESOURCE else ""
        await self._do(
            "connect",
            self.opened.node.monitor.connect(owner, name, other, port=port, for_s=for_s),
            lambda channel: (channel.number, None if for_s is None else channel.since + for_s),
            ends=(name, other),
            for_s=for_s,
        )

    async def _die(self, name: str) -> None:
        assert self.opened is not None
        domain = self.opened.node.monitor.domains.get(name)
        if domain is not None and domain.state in ALIVE:
            fact = self.ledger.ask("die", name=name)
            assert isinstance(domain.machine, KeptMachine)
            domain.machine.die()
            self.ledger.answer(fact)

    def _flood(self, chance: random.Random) -> None:
        for machine in self.outside.machines:
            if machine.running:
                for port in machine.guest.ports():
                    with contextlib.suppress(EOFError):
                        machine.guest.write(port, b"flood" * chance.randrange(1, 20_000))

    async def _do(
        self,
        kind: str,
        work: Coroutine[Any, Any, Any],
        answer: Callable[[Any], Any] = lambda done: None,
        **about: Any,
    ) -> None:
        fact: Fact = self.ledger.ask(kind, **about)
        try:
            done = await work
        except AuditUnavailable:
            # What a failing disk has refused may be on it after the crash: no answer binds.
            self.counts["sick"] += 1
        except SkerryError as error:
            self.ledger.answer(fact, error=str(error))
            self.counts["refused"] += 1
        else:
            self.ledger.answer(fact, answer(done))
            self.counts[kind] += 1


AIMS = ("load", "load", "loads", "relabel", "start", "burst", "cut", "kill", "alarm", "reconcile")
"""Commands in the middle of which a kill is tried."""

COMMAND_WEIGHTS = {
    "start": 8,
    "stop": 1,
    "kill": 1,
    "pause": 1,
    "resume": 1,
    "connect": 12,
    "use": 4,
    "burst": 2,
    "cut": 2,
    "relabel": 2,
    "load": 2,
    "loads": 0.7,
    "dry-run": 0.5,
    "alarm": 0.2,
    "reconcile": 0.6,
    "die": 0.5,
    "flood": 2,
    "sick": 0.3,
}


def _bound(channels: Any) -> dict[int, tuple[str, str]]:
    return {c.number: (c.source.name, c.sink.name) for c in channels}


def main() -> None:
    """Run one world in this process, which is of no use afterwards."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--mutation", choices=MUTATIONS)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if given.mutation:
        MUTATIONS[given.mutation]()
    code = 0
    with tempfile.TemporaryDirectory(prefix="skerry-storm-", dir="/var/tmp") as folder:
        storm = Storm(given.seed, Path(folder))
        try:
            storm.run(given.kills)
        except Broken as error:
            code = 1
            sys.stderr.write(f"after kill {storm.counts['kills']}: {error}\n")
        except BaseException:
            code = 2
            sys.stderr.write(traceback.format_exc())
        if code:
            sys.stderr.write("".join(f"{fact!r}\n" for fact in storm.ledger.facts))
        sys.stdout.write(json.dumps(storm.counts) + "\n")
        sys.stdout.flush()
    os._exit(code)  # the threads of the killed never end


if __name__ == "__main__":
    main()

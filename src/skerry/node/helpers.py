"""Starts this package's own helpers (the policy manager, the audit writer), each in a jail.

The rules: a helper holds the descriptors that it was given and can get no other; it has an identity
of its own, which its next process gets when this one has ended; a layer of the jail that the host
lacks counts as it does for a domain.

A helper is a module with a `main()`. It has no network, can make no process and open nothing for
writing; it says itself that it is not dumpable. It ends when what it was given says so.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from skerry.errors import LayerMissing
from skerry.jail import cgroup
from skerry.jail.confinement import LAYERS, Confinement, Limits
from skerry.jail.errors import JailError
from skerry.jail.filter import Profile
from skerry.jail.identity import Identity
from skerry.machine.jailed import JailedLauncher
from skerry.node import paths
from skerry.node.helper_root import PACKAGES, PYTHON, HelperRoot, helper_root
from skerry.node.jails import make_groups
from skerry.supervisor.client import Process, SupervisorClient
from skerry.system.model import System

LIMITS = Limits(memory=512 << 20, pids=16)
"""What one helper may use: bytes of memory, processes and threads."""


class Order(NamedTuple):
    """A helper to start: its name at the supervisor, what it runs and with what.

    `root` is another one than the Python helpers'; `binds`, `writable`, `without`: see
    `Confinement`; `first`: see `device.helper.Program`.
    """

    name: str
    argv: Sequence[str]
    fds: Mapping[int, int]
    identity: Identity
    profile: str | Profile = "helper"
    limits: Limits = LIMITS
    root: Path | None = None
    binds: tuple[tuple[str, str], ...] = ()
    writable: tuple[tuple[str, str], ...] = ()
    without: frozenset[str] = frozenset()
    first: tuple[str, ...] = ()


class Helpers:
    """The maker of a node's helpers."""

    def __init__(
        self,
        supervisor: SupervisorClient,
        identity: Callable[[str], Identity],
        accepted: Collection[str],
    ) -> None:
        """`identity` gives one that nobody had; `accepted` are layers that may be missing."""
        self._supervisor = supervisor
        self._take = identity
        self._accepted = frozenset(accepted)
        self._starts = itertools.count(1)
        self._root: HelperRoot | None = None
        self._identities: dict[str, Identity] = {}
        self._running: dict[str, Process] = {}
        self._leaving: set[asyncio.Future[None]] = set()

    async def close(self) -> None:
        """End what still runs, and wait until what was made for the helpers is gone."""
        for process in self._running.values():
            process.kill()
            await process.exited
        await asyncio.sleep(0)  # what follows an end has then begun
        await asyncio.gather(*self._leaving)

    async def start(self, name: str, module: str, fds: Mapping[int, int]) -> Process:
        """Run `main()` of a module of this package in a jail of its own.

        It holds exactly these descriptors (its number to ours; 0, 1 and 2 are /dev/null where not
        named). Ours stay open. An earlier process of this name is ended first. Raises
        `LayerMissing`, `LimitReached`, `SupervisorError`; then nothing was started.
        """
        identity = await self._identity(name)
        process = await self.launch(Order(name, command(module), fds, identity))
        self._running[name] = process
        return process

    async def launch(self, order: Order) -> Process:
        """Run what is ordered, as `start` does; it is the caller's to end."""
        root, binds = order.root, order.binds
        if root is None:
            place = await self._place()
            root, binds = place.root, ((str(place.packages), PACKAGES), *binds)
        short = order.name.replace("/", "-")
        groups = make_groups(f"{short}.{next(self._starts)}", order.limits, self._accepted)
        jail = Confinement(
            str(root),
            order.identity,
            profile=order.profile,
            binds=binds,
            writable=order.writable,
            cgroups=groups,
            accepted=self._accepted | order.without,
            without=order.without,
        )
        try:
            launcher = JailedLauncher(self._supervisor, jail, order.first)
            process = await launcher.launch(order.name, order.argv, order.fds)
        except BaseException:
            self._leave(groups)
            raise
        process.exited.add_done_callback(lambda _: self._leave(groups))
        return process

    async def _identity(self, name: str) -> Identity:
        """Return the identity of this name, which no process has any more.

        One that is lost again and again must not use up the identities of the domains.
        """
        earlier = self._running.pop(name, None)
        if earlier is not None:
            earlier.kill()
            await earlier.exited
        if name not in self._identities:
            self._identities[name] = self._take(name)
        return self._identities[name]

    async def _place(self) -> HelperRoot:
        """Return the root, compared with the host's files once in the life of a node."""
        if self._root is None or not all(path.is_dir() for path in self._root):
            directory = paths.make_shared(paths.roots_dir())
            try:
                self._root = await asyncio.to_thread(helper_root, directory)
            except JailError as error:
                raise LayerMissing(error.message, fix=error.fix) from None
        return self._root

    def _leave(self, groups: tuple[str, ...]) -> None:
        """Remove the groups of a helper that has ended, beside the event loop."""
        task = asyncio.ensure_future(asyncio.to_thread(cgroup.remove, groups))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def accepted_layers(system: System) -> frozenset[str]:
    """Return the layers that may be missing from the jail of a system's helpers.

    They are those of its domains. Where no domain needs a jail the helpers are confined as far as
    the host can.
    """
    jailed = any(domain.machine != "simulator" for domain in system.machines)
    return frozenset(system.accept_missing if jailed else LAYERS)


def command(module: str, packages: str = PACKAGES) -> list[str]:
    """Return the command that runs a helper's `main()`, in the jail or anywhere else."""
    code = f"import sys; sys.path.append({packages!r}); import {module} as helper; helper.main()"
    return [str(PYTHON), "-I", "-S", "-c", code]

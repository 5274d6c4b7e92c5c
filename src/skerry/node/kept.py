"""The system and the policy in force, in a file: what a restarted node goes on with.

The rule this module keeps: a restarted node never reads the user's files again, which may have
changed; it reads what was in force, and only if it is unaltered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import msgspec

from skerry.audit.disk import HostDisk
from skerry.errors import Denied, SkerryError
from skerry.label import Label
from skerry.monitor.domain import Domain
from skerry.node.journal import NodeJournal
from skerry.node.setup import Setup
from skerry.policy.fitness import check_fitness
from skerry.policy.source import Source, make_policy
from skerry.system.model import System

PREFIX = "setup-"


class KeptSetup(msgspec.Struct, frozen=True):
    """A setup without what can be made again from the rest."""

    system: System
    sources: tuple[Source, ...]
    labels: Mapping[str, Label]
    operators: Mapping[int, Label]
    owner: Label
    policy_key: bytes
    consoles: Mapping[str, Label]
    names: Mapping[str, Label] = {}


def save_setup(folder: pathlib.Path, setup: Setup) -> str:
    """Write a setup durably and return the name of its file. Raises `Denied`."""
    kept = KeptSetup(
        setup.system,
        setup.policy.sources,
        setup.labels,
        setup.operators,
        setup.owner,
        setup.policy_key,
        setup.consoles,
        setup.names,
    )
    content = msgspec.msgpack.encode(kept, enc_hook=str)
    path = folder / f"{PREFIX}{hashlib.sha256(content).hexdigest()}"
    new = folder / f".{path.name}.{os.getpid()}"
    try:
        if not path.exists():
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            HostDisk().sync_folder(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise Denied(
            f"the system in force cannot be written down: {error.strerror}",
            fix="make room on the disk",
            code="NOT-DURABLE",
        ) from None
    return path.name


def read_setup(folder: pathlib.Path, name: str) -> Setup:
    """Read a setup that was in force. Raises `SkerryError` if it is missing or altered."""
    try:
        content = (folder / name).read_bytes()
        if name != f"{PREFIX}{hashlib.sha256(content).hexdigest()}":
            raise ValueError("its content is not what its name says")
        kept = msgspec.msgpack.decode(content, type=KeptSetup, dec_hook=_decode)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise SkerryError(
            f"the system that was in force cannot be read: {error}", fix="`skerry up` starts anew"
        ) from None
    policy = make_policy(kept.sources)
    warnings = tuple(check_fitness(policy.stack))
    return Setup(
        kept.system,
        policy,
        kept.labels,
        kept.operators,
        kept.owner,
        warnings,
        kept.policy_key,
        kept.consoles,
        kept.names,
    )


def forget_setups(folder: pathlib.Path, *names: str) -> None:
    """Remove every setup but these, and what a node that was killed had only begun to write."""
    for path in (*folder.glob(f"{PREFIX}*"), *folder.glob(f".{PREFIX}*")):
        if path.name not in names:
            with contextlib.suppress(OSError):
                path.unlink()


class SetupKeeper:
    """Keeps a node's setup: durable before it is in force.

    One change at a time is written down or undone, so that none removes what another needs.
    """

    def __init__(self, journal: NodeJournal, folder: pathlib.Path) -> None:
        self._last: Setup | None = None
        self._doubtful: set[str] = set()
        self._journal = journal
        self._folder = folder
        self._keeping = asyncio.Lock()

    async def keep(
        self, setup: Setup, generation: int, labels: Mapping[Domain, Label] | None = None
    ) -> None:
        """Write down what comes into force, with the labels of the domains that it renames.

        Raises `Denied`; then what was in force still is.
        """
        async with self._keeping:
            await self._keep(setup, generation, labels or {})

    async def _keep(self, setup: Setup, generation: int, labels: Mapping[Domain, Label]) -> None:
        name = await asyncio.to_thread(save_setup, self._folder, setup)
        self._last = setup
        # A record that failed may be found after a crash all the same, until another one stands.
        self._doubtful.add(name)
        await self._journal.changed(name, generation, labels)
        self._doubtful.clear()

    async def settle(
        self, tried: Setup, setup: Setup, generation: int, labels: Mapping[Domain, Label]
    ) -> None:
        """Leave written down what is in force, where that is not what was tried; drop the rest.

        Nothing is undone once another change was written down. Raises `Denied`.
        """
        await self._journal.written()  # a policy may have renamed who wrote
        async with self._keeping:
            if setup is not tried and self._last is tried:
                await self._keep(setup, generation, labels)
            forget_setups(self._folder, self._journal.standing.setup, *self._doubtful)


def _decode(kind: type, value: Any) -> Any:
    if issubclass(kind, pathlib.PurePath):
        return kind(value)
    raise NotImplementedError

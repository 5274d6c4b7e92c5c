"""Gives a node of simulated machines another system file, as `up` does."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, cast

from skerry.wire import control as wire
from skerry.wire.system_files import (
    PolicyFile,
    SystemFiles,
    encode_files,
)
from tests.unit.control.test_calls import (
    POLICY,
    SYSTEM,
    Client,
    Host,
)

HELPER = 4_000_000
"""The uid of an operator who may see and start what is red, and may not load a policy."""

OPERATED = f'{SYSTEM}[operators]\n"uid:{os.getuid()}" = "op"\n"uid:{HELPER}" = "helper"\n'
APART = POLICY.replace('ste = ["blue", "all"]', 'ste = ["blue"]')
"""A policy under which `blue` shares with nobody, so that only the owner may start it."""

MORE = '[domains.c]\nlabel = "red"\nmachine = "simulator"\n'
ALONE = SYSTEM[: SYSTEM.index("[[channels]]")]


class Caller(Client):
    """A client with the credentials of a user."""

    def __init__(self, uid: int) -> None:
        super().__init__("op" if uid == os.getuid() else "helper")
        self.uid = uid

    def events(self) -> list[dict[str, Any]]:
        """Return what the node told of its steps."""
        return [json.loads(line) for line in self.shown.splitlines()]


class Result:
    """What a call answered, and the events before it."""

    def __init__(self, answer: object, events: list[dict[str, Any]]) -> None:
        self.answer = cast(Mapping[str, Any], answer)
        self.plan = [f"{e['action']} {e['what']}" for e in events if e["event"] == "plan"]
        self.done = [e for e in events if e["event"] != "plan"]

    @property
    def refused(self) -> list[str]:
        """What was refused."""
        return [refusal["what"] for refusal in self.answer["refused"]]


async def up(
    host: Host, system: str, policy: str = POLICY, *, uid: int | None = None, **options: bool
) -> Result:
    """Give the node another file, as the command does."""
    caller = Caller(os.getuid() if uid is None else uid)
    path = host.node.setup.system.path
    files = SystemFiles(
        str(path), system, (PolicyFile(str(path.parent / "policy.toml"), policy.encode()),)
    )
    caller.type(encode_files(files))
    caller.type(b"")
    return Result(await host.handle(wire.Reconcile(**options), caller), caller.events())


def states(host: Host) -> dict[str, str]:
    """Return each defined domain's state."""
    found = {}
    for name in host.node.setup.system.domains:
        domain = host.monitor.domains.get(name)
        found[name] = domain.state.value if domain else "defined"
    return found


def ports(host: Host) -> dict[str, int]:
    """Return the live channels by port."""
    return {channel.port: channel.number for channel in host.monitor.channels}

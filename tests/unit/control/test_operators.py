"""What an operator may, permission by permission: each call is a hook of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import Denied
from skerry.wire import control as wire
from tests.unit.control.test_calls import LOCKDOWN, OWNER, PERMITTED, FlaskClient, Host, play

WATCHER = "sys_u:sys_r:watch_t"
"""An operator who may list domains, and nothing else."""

MAY_LIST = "allow watch_t dom_t:domain getdomaininfo;\n"
WATCHED = (
    PERMITTED.replace("type dom0_t;", "type dom0_t; type watch_t;")
    .replace("types { dom0_t", "types { watch_t dom0_t")
    .replace(
        "allow dom0_t security_t",
        "allow watch_t dom_t:domain getdomaininfo;\nallow dom0_t security_t",
    )
)


def test_who_may_list_need_not_be_able_to_do_anything_else(tmp_path: Path) -> None:
    """He sees domains and channels; every call that gives authority is denied him, and recorded.
    The control: the owner's same calls are done."""

    async def scene(host: Host) -> None:
        await host.up()
        watcher, owner = FlaskClient(WATCHER), FlaskClient(OWNER)
        for listing in (wire.Ps(), wire.Channels()):
            rows = await host.handle(listing, watcher)
            assert isinstance(rows, list)
            assert rows
        await host.node.kill("c")
        for call in (
            wire.Start("c"),
            wire.Pause("a"),
            wire.Relabel("a", "sys_u:sys_r:dom_t"),
            wire.Exec("a", ("true",)),
            wire.Console("a"),
            wire.SetBooleans({"bridged": False}),
            wire.Restart(),
        ):
            before = len(host.audit.events("deny"))
            with pytest.raises(Denied):
                await host.handle(call, watcher)
            assert len(host.audit.events("deny")) == before + 1, call
        assert host.monitor.mediator.decider.generation == 1
        await host.handle(wire.Start("c"), owner)
        await host.handle(wire.SetBooleans({"bridged": False}), owner)
        assert host.monitor.mediator.decider.generation == 2

    play(tmp_path, scene, WATCHED, LOCKDOWN)


def test_who_may_not_even_list_sees_nothing(tmp_path: Path) -> None:
    """No domain, no channel, and none can be connected."""

    async def scene(host: Host) -> None:
        await host.up()
        stranger = FlaskClient(WATCHER)
        assert await host.handle(wire.Ps(), stranger) == []
        assert await host.handle(wire.Channels(), stranger) == []
        with pytest.raises(Denied):
            await host.handle(wire.Connect("a", "c"), stranger)

    blind = WATCHED.replace(MAY_LIST, "")
    play(tmp_path, scene, blind, LOCKDOWN)

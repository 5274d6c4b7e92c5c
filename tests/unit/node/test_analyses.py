"""Plans are proven one at a time, and hold up no change of policy."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from skerry.errors import Denied
from skerry.node import proving
from skerry.node.analyses import analysed
from skerry.node.assertions import violations
from skerry.wire import control as wire
from skerry.wire.system_files import PolicyFile, SystemFiles, encode_files
from tests.support.reconciling import HELPER, OPERATED, Caller, up
from tests.unit.control.test_calls import POLICY, Host, play

WAIT_S = 10.0


def test_a_plan_waits_for_the_plan_before_it_and_a_change_for_neither() -> None:
    """While one is made, another of its kind is not begun."""
    begun: list[str] = []
    started, going = threading.Event(), threading.Event()

    def work(name: str, wait: bool = False) -> str:
        begun.append(name)
        started.set()
        assert not wait or going.wait(WAIT_S)
        return name

    async def scene() -> None:
        first = asyncio.create_task(analysed("plan", work, "first", wait=True))
        assert await asyncio.to_thread(started.wait, WAIT_S)
        second = asyncio.create_task(analysed("plan", work, "second"))
        assert await asyncio.wait_for(analysed("change", work, "change"), WAIT_S) == "change"
        assert begun == ["first", "change"]
        going.set()
        assert await first == "first"
        assert await second == "second"

    asyncio.run(scene())


@pytest.mark.parametrize("where", ["policy", "system"])
def test_who_may_load_no_policy_gets_no_assertion_of_his_own_analysed(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beside a policy that is in force nor in a system file. The control: the owner does,
    and the helper gets the file that is in force."""
    made: list[object] = []
    plain = violations

    def counting(*given: object) -> object:
        made.append(given)
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(proving, "violations", counting)
    system, beside = OPERATED, b""
    if where == "policy":
        beside = b'[[assert]]\nnever = "blue -> helper"\nexcept = ["op", "red"]\n'
    else:
        system = OPERATED.replace("[operators]", '[[assert]]\nnever = "b -> a"\n[operators]')

    async def plan(host: Host, uid: int | None = None) -> None:
        caller = Caller(os.getuid() if uid is None else uid)
        path = host.node.setup.system.path
        policy = PolicyFile(str(path.parent / "policy.toml"), POLICY.encode(), assertions=beside)
        caller.type(encode_files(SystemFiles(str(path), system, (policy,))))
        caller.type(None)
        await host.handle(wire.Reconcile(dry_run=True), caller)

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(Denied):
            await plan(host, HELPER)
        assert made == []
        await up(host, OPERATED, uid=HELPER, dry_run=True)
        assert len(made) == 1
        if where == "policy":
            await plan(host)
            assert len(made) == 2

    play(tmp_path, scene, POLICY, OPERATED)

"""A start from a template that can't be had: once more without, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from skerry.errors import MachineError
from skerry.label import Label
from skerry.machine.qemu.template import TemplateUnusable
from skerry.machine.simulator.machine import SimulatedMachine
from skerry.monitor.domain import State
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Machine
from skerry.node.node import Node
from skerry.node.setup import load_setup
from skerry.node.template_store import TemplateAltered
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.system.model import DomainSpec
from tests.support.monitor import ToyAudit

SYSTEM = """
name = "t"
policy = "dummy"
[jail]
accept-missing = ["swap"]
[domains.a]
label = "a"
template = true
"""


class Failing(SimulatedMachine):
    """A clone that does not come up."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self._error = error

    async def prepare(self) -> None:
        """Fail."""
        raise self._error


def play(
    folder: Path, error: Exception, scene: Callable[[Node, ToyAudit, list[bool]], object]
) -> None:
    """Play a scene on a node whose clones fail with this error; what was made is listed."""
    (folder / "system.toml").write_text(SYSTEM)
    setup = load_setup(folder / "system.toml")
    made: list[bool] = []

    def make(domain: DomainSpec, label: Label) -> Machine:
        made.append(domain.template)
        return Failing(domain.name, error) if domain.template else SimulatedMachine(domain.name)

    async def run() -> None:
        audit = ToyAudit()
        monitor = Monitor(PolicyManager(setup.stack, MemoryHistory()), audit, {}, lambda: 0.0)
        node = Node(setup, monitor, make, lambda: 0.0)
        node.measured = lambda spec: {"template": True} if spec.template else {}
        answer = scene(node, audit, made)
        assert asyncio.iscoroutine(answer)
        await answer
        await node.down(0.0)

    asyncio.run(asyncio.wait_for(run(), 10))


def _starts(audit: ToyAudit) -> list[Mapping[str, object]]:
    return [fields for _, fields in audit.records if fields.get("hook") == "domain_create"]


def test_the_domain_starts_without_and_both_starts_are_decided(tmp_path: Path) -> None:
    """It is asked for twice, once from a template and once not; the second one runs."""

    async def scene(node: Node, audit: ToyAudit, made: list[bool]) -> None:
        await node.start(node.setup.owner, "a")
        assert node.monitor.domain("a").state is State.RUNNING
        assert made == [True, False]
        assert [fields.get("template") for fields in _starts(audit)] == [True, None]

    play(tmp_path, TemplateUnusable("none"), scene)


@pytest.mark.parametrize("error", [TemplateAltered("altered"), MachineError("broken")])
def test_whatever_else_goes_wrong_is_no_reason_to_start_without(
    tmp_path: Path, error: Exception
) -> None:
    """An altered template is a denial, and a machine that fails has failed."""

    async def scene(node: Node, audit: ToyAudit, made: list[bool]) -> None:
        with pytest.raises(type(error)):
            await node.start(node.setup.owner, "a")
        await node.monitor.domain("a").gone.wait()
        assert made == [True]
        assert node.monitor.running() == ()

    play(tmp_path, error, scene)

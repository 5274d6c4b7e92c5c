"""What fails while a system is brought up is refused, said and recorded, and stops nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from skerry.monitor.domain import State
from skerry.monitor.protocols import Kind
from tests.unit.control.test_calls import SYSTEM, Host, play

TWO_MORE = """
[domains.c]
label = "red"
machine = "simulator"
[[channels]]
kind = "stream"
from = "b"
to = "c"
name = "prices"
"""


@pytest.mark.parametrize("when", ["prepare", "attach", "resume"])
def test_a_defect_in_one_domain_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Its machine fails as nobody foresaw: that is refused and in the trail; the rest stands."""

    def fail() -> NoReturn:
        raise AttributeError("'list' object has no attribute 'get'")

    async def scene(host: Host) -> None:
        make = host.node._make

        def broken(spec, label):  # type: ignore[no-untyped-def]
            machine = make(spec, label)

            async def attach(channel: int, kind: Kind, port: str, *ends: int) -> None:
                fail()

            async def simply() -> None:
                fail()

            if spec.name == "a":
                monkeypatch.setattr(machine, when, attach if when == "attach" else simply)
            return machine

        host.node._make = broken
        refused = await host.node.up(lambda event: host.events.append(dict(event)))
        assert [str(each.error) for each in refused if "AttributeError" in str(each.error)]
        noted = [fields for event, fields in host.audit.records if event == "not-started"]
        assert len(noted) == 1 and "AttributeError" in str(noted[0]["reason"])
        assert any(event["event"] == "refused" for event in host.events)
        running = {d.name for d in host.monitor.domains.values() if d.state is State.RUNNING}
        assert {"b", "c"} <= running
        ports = {channel.port for channel in host.monitor.channels}
        assert "prices" in ports and ("orders" in ports) is (when == "resume")

    play(tmp_path, scene, system=SYSTEM + TWO_MORE)

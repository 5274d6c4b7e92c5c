"""What `channels --verbose` prints of rows, without a node."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from skerry.cli import show
from skerry.wire.control import Call

ROW = {
    "id": 1,
    "kind": "stream",
    "source": "a",
    "sink": "b",
    "one_way": True,
    "port": "p",
    "asked": None,
    "generation": 1,
    "seconds": 0,
    "left_s": None,
    "record": 1,
    "state": "live",
}


def shown(monkeypatch: pytest.MonkeyPatch, **row: object) -> list[str]:
    """Return the lines for one channel."""

    def answer(call: Call) -> list[dict[str, object]]:
        return [{**ROW, **row}]

    monkeypatch.setattr(show, "ask", answer)
    done = CliRunner().invoke(show.channels, ["--verbose"])
    assert done.exit_code == 0
    return done.output.splitlines()


def test_a_read_only_use_has_no_setting_and_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the legend come. The control: a stream that waits has all three."""
    _, line = shown(monkeypatch, kind="disk", overflow=None, back_bits_s=None)
    assert line.split()[-3:] == ["live", "-", "-"]
    _, line, legend = shown(monkeypatch, overflow="block", back_bits_s=60_000)
    assert line.endswith("block     ~60 kbit/s")
    assert "as measured on the machine that Skerry is made on" in legend


def test_a_one_way_memory_drops_and_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its row says; no legend."""
    _, line = shown(monkeypatch, kind="memory", overflow="drop", back_bits_s=0)
    assert line.endswith("drop      none")

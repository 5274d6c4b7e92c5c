"""The answer of the KVM probe is remembered until the host boots anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from skerry.machine.qemu import accel


def test_each_kernel_is_probed_once_a_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second kernel does not make the first forgotten; the next boot does."""
    monkeypatch.setattr(accel, "BINARY", "/bin/sh")
    asked: list[str] = []

    async def ask(kernel: str, answer: bool) -> bool:
        async def probe() -> bool:
            asked.append(kernel)
            return answer

        return await accel.kvm_runs(Path(kernel), tmp_path / "cache", probe)

    assert not asyncio.run(ask("/a", answer=False))
    assert asyncio.run(ask("/b", answer=True))
    assert not asyncio.run(ask("/a", answer=True))
    assert asked == ["/a", "/b"]
    monkeypatch.setattr(accel, "_boot", lambda: "another")
    assert asyncio.run(ask("/a", answer=True))
    assert asked == ["/a", "/b", "/a"]


def test_a_damaged_memory_costs_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage in the cache is no answer."""
    monkeypatch.setattr(accel, "BINARY", "/bin/sh")
    (tmp_path / "cache").write_text("{")

    async def probe() -> bool:
        return True

    assert asyncio.run(accel.kvm_runs(Path("/a"), tmp_path / "cache", probe))

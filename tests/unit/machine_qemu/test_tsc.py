"""The rate of the time-stamp counter."""

from __future__ import annotations

import pytest

from skerry.errors import MachineError
from skerry.machine.qemu import tsc


def test_measured_twice_it_is_the_same() -> None:
    """Two measurements agree to half a percent, and are those of a processor of this century."""
    one, other = tsc._measure(), tsc._measure()
    assert abs(one - other) < one / 200
    assert 500_000 < one < 10_000_000


def test_cpuinfo_is_the_second_choice() -> None:
    """The nominal rate is better than the one of this moment; with neither it is an error."""
    text = "model name\t: Xeon @ 2.50GHz\ncpu MHz\t\t: 3100.5\n"
    assert tsc._from_cpuinfo(text) == 2_500_000
    assert tsc._from_cpuinfo("cpu MHz\t\t: 3100.5\n") == 3_100_500
    with pytest.raises(MachineError):
        tsc._from_cpuinfo("")

"""The limits of a system against the host's limit of open files."""

from __future__ import annotations

import resource

import pytest

from skerry.errors import LimitReached
from skerry.node.descriptors import check_descriptors
from skerry.system.model import Limits


def has(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """Let the process have so many open files."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))


def test_limits_that_the_host_cannot_hold_are_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names a number of channels that fits; that fits, and one more does not."""
    has(monkeypatch, 4096)
    with pytest.raises(LimitReached, match="4096 open files") as caught:
        check_descriptors(Limits(domains=100, channels=4096))
    most = (4096 - 600 - 7 * 100) // 2
    assert f"limits.channels to {most} or less" in caught.value.fix
    check_descriptors(Limits(domains=100, channels=most))
    with pytest.raises(LimitReached):
        check_descriptors(Limits(domains=100, channels=most + 1))


def test_more_than_the_store_takes_is_refused_on_a_large_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The supervisor's own limit counts where the host's is far away; the default fits."""
    has(monkeypatch, 1 << 20)
    check_descriptors(Limits())
    with pytest.raises(LimitReached):
        check_descriptors(Limits(domains=1, channels=20_000))

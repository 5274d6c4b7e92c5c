"""The stand-in for a machine with a kernel package, for the tests of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kernel_package import Debian


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Debian:
    """Give the stand-in."""
    return Debian(tmp_path / "debian", monkeypatch)

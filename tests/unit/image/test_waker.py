"""The program that a clone awakes by. In real guests it is seen to work; here it would set ours."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

from skerry.image.minimal import guest_files
from skerry.image.waker import GIVEN, program


def run(tmp_path: Path, given: bytes) -> int:
    """Run it on this host, which it must not change."""
    assert len(given) != GIVEN
    file = tmp_path / "waker"
    file.write_bytes(program())
    file.chmod(stat.S_IRWXU)
    return subprocess.run([file], input=given, check=False, timeout=10).returncode


def test_less_than_all_is_a_failure(tmp_path: Path) -> None:
    """One byte short, or nothing at all: the guest does not go on."""
    assert run(tmp_path, bytes(GIVEN - 1)) == 1
    assert run(tmp_path, b"") == 1


def test_every_image_has_it() -> None:
    """As a static program of one small file."""
    assert guest_files()["waker"] == program()
    assert len(program()) < 512

"""The program that has a guest's kernel draw new random numbers."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from skerry.image.minimal import guest_files
from skerry.image.reseed import SEED, program


def run(tmp_path: Path, seed: bytes) -> int:
    """Run it on this host, whose random numbers that can only make better."""
    file = tmp_path / "reseed"
    file.write_bytes(program())
    file.chmod(stat.S_IRWXU)
    return subprocess.run([file], input=seed, check=False, timeout=10).returncode


def _may_reseed() -> bool:
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(line.split()[1] for line in lines if line.startswith("CapEff"))
    return bool(int(effective, 16) >> 21 & 1)  # CAP_SYS_ADMIN


def test_the_kernel_takes_the_seed_from_who_may_give_one(tmp_path: Path) -> None:
    """It ends with 0 where the kernel took it, and else says that it did not."""
    assert run(tmp_path, os.urandom(SEED)) == (0 if _may_reseed() else 1)


def test_a_short_seed_is_none(tmp_path: Path) -> None:
    """63 bytes, or nothing at all, is a failure, and the guest does not go on."""
    assert run(tmp_path, bytes(SEED - 1)) == 1
    assert run(tmp_path, b"") == 1


def test_every_image_has_it() -> None:
    """As a static program of one small file."""
    assert guest_files()["reseed"] == program()
    assert len(program()) == 256

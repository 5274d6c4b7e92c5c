"""What a system file may say of a domain that boots its own disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.system.load import parse_system

GOOD = """
name = "own"
policy = "dummy"
[domains.own]
label = "dummy"
boot = "bios"
uses = ["system"]
[resources.system]
kind = "disk"
label = "dummy"
file = "disk.raw"
"""
FILE = Path("/x/system.toml")


@pytest.mark.parametrize("boot", ["bios", "uefi"])
def test_a_domain_boots_its_own_disk_on_a_board_with_slots(boot: str) -> None:
    """It has no image, so none is built for it."""
    system = parse_system(GOOD.replace("bios", boot), FILE)
    domain = system.domains["own"]
    assert (domain.boot, domain.image, domain.slots) == (boot, "", True)
    assert system.images == frozenset()
    ours = parse_system(GOOD.replace('boot = "bios"', ""), FILE)
    assert ours.domains["own"].boot == "kernel"
    assert ours.images == frozenset({"minimal"})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('uses = ["system"]', "", 'boot = "bios" needs a disk: name one in uses'),
        ("uses", 'image = "minimal"\nuses', "a domain has its disk for an image"),
        ("uses", 'machine = "simulator"\nuses', 'only a machine of the kind "qemu" can boot'),
        ("uses", 'board = "microvm"\nuses', 'board = "pc", or leave it out'),
        ("bios", "grub", '"kernel", "bios" or "uefi"'),
    ],
)
def test_what_cannot_boot_is_wrong(old: str, new: str, words: str) -> None:
    """One line says what to do."""
    with pytest.raises(InputError) as wrong:
        parse_system(GOOD.replace(old, new, 1), FILE)
    (problem,) = wrong.value.problems
    assert words in problem.message

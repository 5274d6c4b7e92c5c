"""The attacks: what each does, where it runs, and the program and image that hold them.

The program is `guests/*.c`, one static binary; beside it the image has Debian's crashme.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec

from skerry.image import package
from tests.support.debian import cached

SOURCES = Path(__file__).parent / "guests"
IMAGE = "hostile"

RECIPE = """\
name = "hostile"
packages = ["crashme"]
drop = ["usr/lib/x86_64-linux-gnu/gconv/*"]

[[files]]
from = "attack"
to = "/usr/bin/attack"
mode = "0755"
"""

LONG = bool(os.environ.get("SKERRY_LONG"))
SECONDS = float(os.environ.get("SKERRY_HOSTILE_S", "30" if LONG else "3"))
"""How long each attack takes, in seconds: `SKERRY_HOSTILE_S` says another time."""


class Attack(msgspec.Struct, frozen=True):
    """One attack: `does` in words, the boards on which it makes sense.

    `short`: whether it is part of the ordinary tests. `fresh`: it needs a guest whose agent or
    channels an earlier attack has not used up. `talk`: the host runs commands in the guest
    meanwhile. `revoke`: in the middle of it all that the attacker has is cut.
    """

    name: str
    does: str
    boards: tuple[str, ...] = ("pc",)
    short: bool = False
    fresh: bool = False
    talk: bool = False
    revoke: bool = False


ALL = ("pc", "q35", "microvm")
PCI = ("pc", "q35")

ATTACKS = (
    Attack("port-io", "random port input and output, half of it to a PC's chips", ALL, short=True),
    Attack("tpm-tis", "random accesses to the TPM's registers, malformed commands", ALL),
    Attack("qmp-events", "makes QEMU tell its owner of events without end", PCI, short=True),
    Attack("translate", "runs and changes code without end: QEMU keeps what it translated", ALL),
    Attack("pci-config", "random accesses to the configuration space of each device", PCI),
    Attack("pci-windows", "random accesses to each window (BAR) of each device", PCI),
    Attack(
        "virtqueues",
        "drives the rings of all virtio devices itself, and breaks every rule of them",
        ALL,
        short=True,
        fresh=True,
    ),
    Attack(
        "lying-agent",
        "answers the host's commands as no agent would, in form and out of it",
        short=True,
        fresh=True,
        talk=True,
    ),
    Attack(
        "uplink", "every way out of an uplink that is not on its list, forged frames", fresh=True
    ),
    Attack(
        "flood",
        "console, agent, calls, streams, one-way streams, memories, bells, cards, disk and TPM at "
        "once; everything is cut in the middle of it",
        ALL,
        short=True,
        fresh=True,
        revoke=True,
    ),
    Attack(
        "eject",
        "ejects its own PCI devices unasked; then everything is cut",
        fresh=True,
        revoke=True,
    ),
    Attack(
        "crashme",
        "Debian's crashme: random bytes run as programs, as root",
        ALL,
        short=True,
        fresh=True,
    ),
)


def program() -> Path:
    """Return the compiled program of all attacks. Raises `SkerryError` without a compiler."""
    sources = sorted(SOURCES.glob("*.c"))
    parts = [*sources, *sorted(SOURCES.glob("*.h"))]
    recipe = hashlib.sha256(b"\0".join(each.read_bytes() for each in parts)).hexdigest()

    def build(work: Path) -> None:
        flags = [
            "-std=gnu11",
            "-O2",
            "-static",
            "-s",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Werror",
        ]
        package.run(
            ["gcc", *flags, "-o", str(work / "attack"), *map(str, sources)],
            package="gcc libc6-dev",
        )

    return cached("attack", recipe, build) / "attack"


def write_recipe(folder: Path) -> Path:
    """Write what `skerry image build` needs into a folder; return the recipe."""
    shutil.copy(program(), folder / "attack")
    path = folder / f"{IMAGE}.toml"
    path.write_text(RECIPE)
    return path

"""TPM 2.0 commands from a guest, and a system whose domains have TPMs."""

from __future__ import annotations

import struct

from skerry.device.tpm import commands
from tests.support.cli import Cli

POLICY = """\
[policy]
name = "tests.tpm"
version = "1.0"
bootstrap = "system"

[simple-type-enforcement]
types = ["system", "red", "blue"]

[labels.system]
ste = ["system", "red", "blue"]

[labels.red]
ste = ["red"]

[labels.blue]
ste = ["blue"]

[resources.red-chip]
ste = "red"
"""

SYSTEM = """\
name = "chips"
policy = "policy.toml"

[resources.chip]
kind = "tpm"
label = "red-chip"

[resources.other]
kind = "tpm"
label = "red-chip"

[domains.one]
label = "red"
uses = ["chip"]

[domains.two]
label = "red"
uses = ["other"]
board = "pc"
"""
"""`one` on a microvm, whose firmware measures nothing; `two` on a board whose firmware does."""

RANDOM = commands.command(0x17B, struct.pack(">H", 8))
"""Asks for eight random bytes."""

_TALK = "cat > /tmp/command; exec 3<>/dev/tpm0; cat /tmp/command >&3; dd bs=4096 count=1 <&3"


def write_system(cli: Cli, system: str = SYSTEM, policy: str = POLICY) -> str:
    """Write both files into a node's home; return the path of the system's."""
    (cli.home / "policy.toml").write_text(policy)
    path = cli.home / "system.toml"
    path.write_text(system)
    return str(path)


def talk(cli: Cli, domain: str, command: bytes) -> bytes:
    """Send a guest's TPM a command, from the guest; return the answer."""
    script = f"{_TALK} 2>/dev/null | od -An -v -tx1"
    said = cli.ok("exec", "-i", domain, "--", "sh", "-c", script, stdin=command)
    return bytes.fromhex("".join(said.split()))


def register(cli: Cli, domain: str, number: int) -> str:
    """Return what a register of the SHA-256 bank holds; nothing if the TPM does not say."""
    file = f"/sys/class/tpm/tpm0/pcr-sha256/{number}"
    return cli.ok("exec", domain, "--", "cat", file).strip("\0\n")


def extend(number: int, digest: bytes) -> bytes:
    """Return the command that extends a register of the SHA-256 bank."""
    password = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)
    body = struct.pack(">I", number) + password + struct.pack(">IH", 1, commands.SHA256) + digest
    return commands.command(0x182, body, commands.SESSIONS)

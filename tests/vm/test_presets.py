"""Images with Debian packages, booted as a user would: built, signed, demanded, measured, run."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli import Cli

SYSTEM = """\
name = "presets"
policy = "dummy"
image-key = "images.pub"

[domains.py]
label = "py"
image = "python"
memory = "256M"

[domains.se]
label = "se"
image = "selinux"
memory = "256M"

[domains.own]
label = "own"
image = "own"
"""

RECIPE = """\
name = "own"
start = ["/srv/say", "it's", "said"]

[[files]]
from = "say"
to = "/srv/say"
mode = "0755"
"""


@pytest.fixture(scope="module")
def presets() -> Iterator[Cli]:
    """A system of two presets and an image of one's own, running; its images are signed."""
    cli = Cli()
    try:
        key, system = str(cli.home / "images"), cli.home / "system.toml"
        cli.ok("image", "keygen", key)
        system.write_text(SYSTEM)
        (cli.home / "own.toml").write_text(RECIPE)
        (cli.home / "say").write_text('#!/bin/sh\necho "$*" >/run/said\nexec sleep 1000\n')
        cli.ok("image", "build", str(cli.home / "own.toml"), "--key", key)
        refused = cli.run("up", str(system), "--detach")
        assert refused.returncode != 0
        assert "image-key" in refused.stdout + refused.stderr
        assert "skerry image sign" in refused.stdout + refused.stderr
        for name in ("python", "selinux"):
            cli.ok("image", "sign", name, "--key", key)
            cli.ok("image", "verify", name, "--key", f"{key}.pub")
        cli.ok("up", str(system), "--detach")
        yield cli
    finally:
        cli.down()


def sh(cli: Cli, script: str) -> str:
    """Run a script in the guest with SELinux; return its output and exit code."""
    done = cli.run("exec", "se", "--", "sh", "-c", script)
    return f"{done.stdout}{done.returncode}"


def test_python_runs_in_its_guest(presets: Cli) -> None:
    """A line of Python, through the agent, with its output and exit code."""
    line = "import sys, zlib; print(zlib.crc32(b'skerry')); sys.exit(7)"
    done = presets.run("exec", "py", "--", "python3", "-c", line)
    assert (done.stdout, done.returncode) == (f"{zlib.crc32(b'skerry')}\n", 7)


def test_selinux_enforces_debians_policy(presets: Cli) -> None:
    """It is loaded, with MCS, and files have their labels; a change of domain that it does not
    allow is refused, and one of range, which it allows, is made."""
    there = "for _ in $(seq 100); do [ -e /sys/fs/selinux/enforce ] && break; sleep 0.1; done"
    assert sh(presets, f"{there}; cat /sys/fs/selinux/enforce; getenforce") == "1Enforcing\n0"
    assert sh(presets, "cat /sys/fs/selinux/mls; secon -t -f /etc/passwd") == "1etc_t\n0"
    assert sh(presets, "echo x >/root/new && cat /root/new") == "x\n0"
    become = "echo -n {} 2>&1 >/proc/self/attr/current && cat /proc/self/attr/current | tr -d '\\0'"
    refused = sh(presets, become.format("user_u:user_r:user_t:s0"))
    assert "Permission denied" in refused
    ranged = "system_u:system_r:kernel_t:s0:c5"
    assert sh(presets, become.format(ranged)) == f"{ranged}0"


def test_selinux_cannot_be_switched_off_from_inside(presets: Cli) -> None:
    """Neither by the switch, nor by a policy, nor by a boolean; they can all be read."""
    for place in ("enforce", "booleans/secure_mode_policyload"):
        path = f"/sys/fs/selinux/{place}"
        assert sh(presets, f"cat {path} >/dev/null; echo 0 2>&1 >{path}").endswith("1")
    assert sh(presets, "load_policy").endswith("2")
    assert sh(presets, "getenforce") == "Enforcing\n0"


def test_an_image_of_ones_own_is_found_by_name_and_starts_its_command(presets: Cli) -> None:
    """With its words as they were written; an image that nobody built is named before anything."""
    there = "for _ in $(seq 100); do [ -s /run/said ] && break; sleep 0.1; done; cat /run/said"
    assert presets.ok("exec", "own", "--", "sh", "-c", there) == "it's said\n"
    system = presets.home / "other.toml"
    system.write_text(SYSTEM.replace('image = "own"', 'image = "nobodys"'))
    done = presets.run("up", str(system), "--detach")
    assert done.returncode == 1
    assert "image 'nobodys' is not in" in done.stderr


def test_what_a_domain_boots_is_in_the_trail(presets: Cli) -> None:
    """In the first record, and in that of each start: name, digest, and that it was signed."""
    wanted = [
        {"name": name, "digest": shown(presets, name)["digest"], "signed": True}
        for name in ("own", "python", "selinux")
    ]
    records = presets.rows("audit", "tail", "-n", "1000")
    first = next(record["fields"] for record in records if record["event"] == "up")
    assert first["images"] == wanted
    allowed = [record["fields"] for record in records if record["event"] == "allow"]
    started = {r["domain"]: r["image"] for r in allowed if r["hook"] == "domain_create"}
    assert started == dict(zip(("own", "py", "se"), wanted, strict=True))


def shown(cli: Cli, name: str) -> dict[str, Any]:
    """Return what `image show` says of an image."""
    return cli.rows("image", "show", name)[0]

"""Where a row works: a node's home of its own, removed at the end, and a cache that stays.

The rule: what a row makes is gone when it ends, also when it fails or is interrupted. What stays
is the cache of the guest image and the jail roots, which the tests use too.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.measure import say
from skerry.errors import SkerryError
from skerry.image.minimal import build_minimal
from skerry.image.store import Image
from skerry.jail.identity import open_pool
from tests.support.cli import Cli
from tests.support.machines import cache

IN_MEMORY = ("tmpfs", "ramfs")

POLICY = """\
[policy]
name = "bench"
version = "1.0"
bootstrap = "SystemManagement"

[simple-type-enforcement]
types = ["work"]

[labels.SystemManagement]
ste = ["work"]

[labels.bench]
ste = ["work"]

[resources.bench]
ste = "work"
"""


def image() -> Image:
    """Return the minimal image, built at first use."""
    folder = cache() / "share/images"
    if not (folder / "minimal").exists():
        say("building the guest image, once")
    return build_minimal(folder)


def system(
    names: list[str],
    keys: str = "",
    channels: Mapping[str, tuple[str, str]] = {},
    *,
    kind: str = "stream",
    one_way: bool = False,
) -> str:
    """Return a system file: domains with these `keys`, channels by name to their two domains."""
    accepted = ["cgroup", "swap"] if open_domain_uids() else ["cgroup", "swap", "uid"]
    lines = ['name = "bench"', 'policy = "policy.toml"', "[jail]", f"accept-missing = {accepted}"]
    for name in names:
        lines += [f"[domains.{name}]", 'label = "bench"', keys]
    for name, (source, sink) in channels.items():
        lines += ["[[channels]]", f'kind = "{kind}"', f'name = "{name}"']
        lines += [f'from = "{source}"', f'to = "{sink}"']
        lines += ["one-way = true"] if one_way else []
    return "\n".join(lines) + "\n"


def open_domain_uids() -> bool:
    """Say whether this user can give each domain a uid of its own."""
    pool = open_pool()
    if pool is not None:
        pool.close()
    return pool is not None


@contextlib.contextmanager
def home(text: str) -> Iterator[Cli]:
    """Give a node's home that holds `system.toml`; a system that runs in it is ended with it."""
    cli = Cli()
    try:
        (cli.home / "system.toml").write_text(text)
        (cli.home / "policy.toml").write_text(POLICY)
        yield cli
    finally:
        cli.down()


def run(cli: Cli, *words: str) -> str:
    """Run `skerry` and return its output. Raises `SkerryError` with its words if it fails."""
    done = cli.run(*words)
    if done.returncode:
        raise SkerryError(f"skerry {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextlib.contextmanager
def up(text: str) -> Iterator[Cli]:
    """Run a system as its user does, by `skerry up --detach`, and end it."""
    image()
    with home(text) as cli:
        run(cli, "up", str(cli.home / "system.toml"), "--detach")
        yield cli


@contextlib.contextmanager
def disk_folder() -> Iterator[Path]:
    """Give a folder on a real disk. Raises `SkerryError` where `/var/tmp` lies in memory."""
    path = Path(tempfile.mkdtemp(prefix="skerry-bench-", dir="/var/tmp"))
    try:
        kind = file_system(path)
        if kind in IN_MEMORY:
            raise SkerryError(f"{path.parent} is a {kind}", fix="it must lie on a disk")
        yield path
    finally:
        shutil.rmtree(path)


def file_system(path: Path) -> str:
    """Return the kind of the file system that holds a path: `ext4`."""
    best = (0, "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4]
        if path == Path(point) or Path(point) in path.parents:
            best = max(best, (len(point), after.split()[0]), key=lambda pair: pair[0])
    return best[1]

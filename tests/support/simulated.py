"""A small system of simulated domains for the real command: no machine boots, so it is fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cli import Cli

POLICY = """\
[policy]
name = "tests.small"
version = "1.0"
bootstrap = "system"
primary = "chinese-wall"

[simple-type-enforcement]
types = ["system", "trade", "books"]

[chinese-wall]
types = ["red", "blue"]

[[chinese-wall.conflicts]]
name = "rivals"
types = ["red", "blue"]

[labels.system]
ste = ["system", "trade", "books"]

[labels.broker]
ste = ["trade"]

[labels.red]
ste = ["trade", "books"]
cw = ["red"]

[labels.clerk]
ste = ["books"]
cw = ["red"]

[labels.blue]
ste = ["trade"]
cw = ["blue"]
"""
"""`red` shares with `broker` and `clerk`, which share nothing; `blue` conflicts with `red`."""

SYSTEM = """\
name = "small"
policy = "policy.toml"

[domains.broker]
label = "broker"
machine = "simulator"

[domains.red]
label = "red"
machine = "simulator"

[domains.clerk]
label = "clerk"
machine = "simulator"

[domains.blue]
label = "blue"
machine = "simulator"
autostart = false

[[channels]]
kind = "stream"
from = "red"
to = "broker"
name = "orders"

[[channels]]
kind = "stream"
from = "blue"
to = "broker"
name = "blue-orders"

[[assert]]
never = "clerk -> broker"
except = ["red", "blue"]
"""


def write_system(folder: Path, system: str = SYSTEM, policy: str = POLICY) -> str:
    """Write the two files and return the path of the system's."""
    (folder / "policy.toml").write_text(policy)
    path = folder / "system.toml"
    path.write_text(system)
    return str(path)


@contextmanager
def small_node() -> Iterator[Cli]:
    """Run the small system on a node of its own, which ends with the block."""
    cli = Cli()
    try:
        cli.ok("up", write_system(cli.home), "--detach")
        yield cli
    finally:
        cli.down()

"""A disk carries who wrote it into what `up` proves: the whole story, by the command."""

from __future__ import annotations

import pytest

from tests.support.cli import Cli
from tests.support.past import BEFORE, GONE, PAST, RELABELLED, write


@pytest.mark.parametrize(
    ("system", "path"), [(GONE, "before:p -> d -> n"), (RELABELLED, "p -> d -> n")]
)
def test_a_file_that_forgets_who_wrote_a_disk_is_not_brought_up(system: str, path: str) -> None:
    """Neither by the running node nor anew, until the disk is released. The control before: what
    nobody has written is proven."""
    cli = Cli()
    try:
        before = str(write(cli.home, BEFORE))
        after = str(write(cli.home, system, name="after.toml"))
        (cli.home / "d.img").write_bytes(bytes(1 << 20))
        assert "1 assertion proven" in cli.ok("check", after)
        cli.ok("up", before, "--detach")
        words = f"does not hold: {path} ({PAST})"
        for running in (True, False):
            for command in (["check"], ["plan"], ["up", "--detach"]):
                done = cli.run(*command, after)
                assert (done.returncode, words in done.stderr) == (3, True), done.stderr
            asked = cli.run("flow", "prove", "--system", after)
            assert (asked.returncode, PAST in asked.stdout) == (1, True)
            if running:
                cli.ok("down")
        cli.ok("up", before, "--detach")
        cli.ok("stop", "p", "--timeout", "1")
        cli.ok("disk", "release", "d")
        cli.ok("up", after, "--detach")
        assert "n" in cli.ok("disk", "list")
    finally:
        cli.down()

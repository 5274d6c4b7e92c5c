"""A wall with history on a running node: what is proven of it is what the node then refuses."""

from __future__ import annotations

import pytest

from tests.support.cli import Cli
from tests.support.simulated import write_system
from tests.unit.flow.test_lasting import WALK

SYSTEM = 'name = "walk"\npolicy = "policy.toml"\n' + "".join(
    f'[domains.{name}]\nlabel = "{name}"\nmachine = "simulator"\n' for name in "awrb"
)


@pytest.mark.parametrize("history", [True, False])
def test_what_is_proven_by_history_a_channel_bound_before_does_not_leak(history: bool) -> None:
    """The channel in the middle is live before anything is learnt, and stays. The control keeps no
    history: it is refuted, and leaks."""
    cli = Cli()
    policy = WALK.replace('bootstrap = "w"', 'bootstrap = "op"').replace(
        "[labels.a]", '[labels.op]\nste = ["x", "y", "z"]\n[labels.a]'
    )
    if not history:
        policy = policy.replace("history = true", "")
    system = SYSTEM + "autostart = false\n"
    try:
        file = write_system(cli.home, system, policy)
        cli.ok("up", file, "--detach")
        proof = cli.run("flow", "prove", "--system", file, "a -/-> b", "--history")
        assert ("walls with history close every path" in proof.stdout) is history
        assert proof.returncode == (0 if history else 1)
        cli.ok("connect", "w", "r", "--name", "between")
        cli.ok("connect", "a", "w", "--name", "first")
        cli.ok("stop", "a", "--timeout", "1")
        cli.ok("start", "b")
        if history:
            assert "CW-HISTORY-CONFLICT" in cli.denied("connect", "r", "b", "--name", "last")
        else:
            cli.ok("connect", "r", "b", "--name", "last")
            cli.ok("exec", "r", "send", "last", "of a")
            assert cli.ok("exec", "b", "recv", "last") == "of a"
    finally:
        cli.down()

"""Services by the command line: what a file declares, what a guest asks for, what is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.hypercalls import POLICY, SYSTEM
from tests.support.simulated import write_system


@pytest.fixture(scope="module")
def served() -> Iterator[Cli]:
    """A node of simulated domains with services; `ledger` offers one of them."""
    cli = Cli()
    try:
        cli.ok("up", write_system(cli.home, SYSTEM, POLICY), "--detach")
        assert cli.ok("exec", "ledger", "--", "call", "offer", "ledger").endswith("ok\n")
        yield cli
    finally:
        cli.down()


def test_a_plan_says_who_may_serve_a_name_and_who_may_be_bound(tmp_path: Path) -> None:
    """Before anything runs; a check counts them."""
    cli = Cli()
    system = write_system(tmp_path, SYSTEM, POLICY)
    lines = cli.ok("plan", system).splitlines()
    assert "offer   ledger by ledger, ledger-2; may connect: ledger, ledger-2, bank" in lines
    assert "offer   north by north; may connect: bank" in lines
    assert "5 services" in cli.ok("check", system)
    assert cli.rows("check", system)[0]["services"] == 5
    cli.down()


def test_a_stream_that_a_guest_asked_for_is_listed_with_its_service(served: Cli) -> None:
    """Beside one that an operator made, which nobody asked for by name."""
    said = served.ok("exec", "bank", "--", "call", "connect", "ledger").split()
    port = said[said.index("port") + 1]
    served.ok("connect", "bank", "ledger", "--name", "by-hand")
    rows = {row["port"]: row for row in served.rows("channels")}
    assert {name: row["asked"] for name, row in rows.items()} == {port: "ledger", "by-hand": None}
    offers = {row["name"]: row["offers"] for row in served.rows("ps")}
    assert (offers["ledger"], offers["bank"]) == (["ledger"], [])
    assert "OFFERS" in served.ok("ps")
    table = served.ok("channels")
    assert "ASKED" in table
    assert [line.split()[6] for line in table.splitlines()[1:]] == ["ledger", "-"]
    for row in rows.values():
        served.ok("cut", str(row["id"]))


def test_a_refused_guest_and_its_owner_read_of_one_record(served: Cli) -> None:
    """The guest is told nothing; `skerry why` says all to who may read the trail."""
    done = served.run("exec", "stranger", "--", "call", "connect", "ledger")
    assert done.returncode == 3
    assert "denied NO-SERVICE" in done.stdout
    words = done.stdout.split()
    record = words[words.index("record") + 1]
    assert "STE-NO-SHARED-TYPE" in served.ok("why", record)
    assert "STE-NO-SHARED-TYPE" not in done.stdout
    unknown = served.run("exec", "stranger", "--", "call", "connect", "no-such-name")
    words = unknown.stdout.split()
    assert "nobody serves this name" in served.ok("why", words[words.index("record") + 1])

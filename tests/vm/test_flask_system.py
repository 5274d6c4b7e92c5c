"""Real machines under Xen's own default FLASK policy, alone and stacked with an ACM policy."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import policies
from tests.support.cli import Cli

EXAMPLES = Path(__file__).parents[2] / "examples"

DOM_U = "system_u:system_r:domU_t"
ISOLATED = "system_u:system_r:isolated_domU_t"
BUILDING = "system_u:system_r:nomigrate_t_building"
NOMIGRATE = "system_u:system_r:nomigrate_t"

OWN = {"skerry.agent", "skerry.control"}
"""The ports that every guest has; all others are channels."""

MORE_DOMAINS = f"""
[domains.built]
label = "{BUILDING}"
autostart = false

[domains.customer-1]
label = "user_1:vm_r:domU_t"
machine = "simulator"

[domains.customer-2]
label = "user_2:vm_r:domU_t"
machine = "simulator"

[domains.store]
label = "system_u:system_r:xenstore_t"
machine = "simulator"
"""

STACK = f"""
name = "stack"
policy = ["xen.30", "walls.xml"]

[jail]
accept-missing = ["cgroup", "swap"]

[domains.broker]
label = {{ acm = "broker", flask = "{DOM_U}" }}

[domains.bank-a]
label = {{ acm = "bank-a", flask = "{DOM_U}" }}

# Its ACM label may share with the broker, its type may not.
[domains.sealed]
label = {{ acm = "bank-a", flask = "{ISOLATED}" }}

# Its type may share with the broker, its ACM label may not.
[domains.books]
label = {{ acm = "bookkeeping-a", flask = "{DOM_U}" }}

# Flask lets it be created, the Chinese Wall does not.
[domains.bank-b]
label = {{ acm = "bank-b", flask = "{DOM_U}" }}
machine = "simulator"
autostart = false

# The Chinese Wall lets it be created, Flask does not.
[domains.unmade]
label = {{ acm = "broker", flask = "{NOMIGRATE}" }}
machine = "simulator"
autostart = false

[[channels]]
kind = "stream"
from = "bank-a"
to = "broker"
name = "orders"
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A directory with Xen's default policy where the example's system file has it."""
    with tempfile.TemporaryDirectory() as path:
        shutil.copy(policies.xen(), Path(path) / "xen.30")
        yield Path(path)


@pytest.fixture(scope="module")
def xen(folder: Path) -> Iterator[Cli]:
    """The example `xen-policy`, running, with some more domains that the tests ask about."""
    text = (EXAMPLES / "xen-policy/system.toml").read_text(encoding="utf-8")
    path = folder / "system.toml"
    path.write_text(text + MORE_DOMAINS, encoding="utf-8")
    yield from running(path)


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[Cli]:
    """Xen's policy and the walls of the two banks, both of which must allow."""
    shutil.copy(EXAMPLES / "two-banks/policy.xml", folder / "walls.xml")
    path = folder / "stack.toml"
    path.write_text(STACK, encoding="utf-8")
    yield from running(path)


def running(system: Path) -> Iterator[Cli]:
    """Start a system of which nothing may be refused; end it afterwards."""
    cli = Cli()
    try:
        cli.ok("up", str(system), "--detach")
        yield cli
    finally:
        cli.down()


def ports(cli: Cli, domain: str) -> set[str]:
    """Return the channels that a guest sees, by the names of their ports."""
    return set(cli.ok("exec", domain, "--", "ls", "/dev/virtio-ports").split()) - OWN


def appears(cli: Cli, domain: str, port: str) -> bool:
    """Say whether a guest comes to see a port."""
    until = time.monotonic() + 10
    while port not in ports(cli, domain):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def sends(cli: Cli, source: str, sink: str, port: str, text: str) -> str:
    """Return what one guest reads when the other writes a line."""
    cli.ok("exec", source, "--", "sh", "-c", f"echo '{text}' > /dev/virtio-ports/{port}")
    read = f"timeout 20 head -n 1 /dev/virtio-ports/{port}"
    return cli.ok("exec", sink, "--", "sh", "-c", read)


def test_xens_policy_lets_ordinary_domains_exchange_bytes(xen: Cli) -> None:
    """Both are `domU_t`: what one writes the other reads, both ways."""
    assert sends(xen, "web", "shop", "orders", "two books") == "two books\n"
    assert sends(xen, "shop", "web", "orders", "sold out") == "sold out\n"


@pytest.mark.parametrize(("source", "sink"), [("web", "vault"), ("vault", "shop")])
def test_a_channel_to_an_isolated_domain_never_exists(xen: Cli, source: str, sink: str) -> None:
    """Neither guest gets a port, and the denial names the rule that is missing."""
    before = {domain: ports(xen, domain) for domain in (source, sink)}
    why = xen.denied("connect", source, sink, "--name", "gossip")
    types = {"web": "domU_t", "shop": "domU_t", "vault": "isolated_domU_t"}
    missing = f"no rule allows {types[source]}_channel {types[sink]}:event bind [TE-NO-RULE]"
    assert missing in why
    assert "xen.30" in why
    assert {domain: ports(xen, domain) for domain in (source, sink)} == before


def test_the_same_connect_between_ordinary_domains_makes_ports(xen: Cli) -> None:
    """The control of the refusals: the ports appear in both guests, and go with the channel."""
    number = xen.ok("connect", "web", "shop", "--name", "gossip").strip()
    assert appears(xen, "web", "gossip")
    assert appears(xen, "shop", "gossip")
    assert sends(xen, "web", "shop", "gossip", "psst") == "psst\n"
    xen.ok("cut", number)
    assert "gossip" not in ports(xen, "web") | ports(xen, "shop")


def test_the_operator_reaches_the_isolated_guest_which_knows_its_context(xen: Cli) -> None:
    """Xen's policy lets domain 0 talk to it; the guest finds the whole context as its label."""
    assert xen.ok("exec", "vault", "--", "cat", "/run/skerry/label").strip() == ISOLATED
    assert xen.ok("exec", "web", "--", "cat", "/run/skerry/label").strip() == DOM_U


def test_the_operator_too_is_refused_what_xens_policy_does_not_give_it(xen: Cli) -> None:
    """Domain 0 may not map xenstore's grants, so it may not run a command there."""
    why = xen.denied("exec", "store", "--", "true")
    assert "no rule allows dom0_t xenstore_t:grant map_read [TE-NO-RULE]" in why
    why = xen.denied("relabel", "web", ISOLATED)
    assert "no rule allows dom0_t domU_t:domain2 relabelfrom [TE-NO-RULE]" in why


def test_a_constraint_keeps_two_users_apart_and_shows_its_values(xen: Cli) -> None:
    """Same type, other user: the constraint stands in the denial. The control: a system user."""
    why = xen.denied("connect", "customer-1", "customer-2")
    assert "u1 = user_1, u2 = user_2 [CONSTRAINT-FALSE]" in why
    assert "constrain event { bind } (u1 == system_u or u2 == system_u or u1 == u2);" in why
    number = xen.ok("connect", "customer-1", "web", "--name", "shared").strip()
    assert appears(xen, "web", "shared")
    xen.ok("cut", number)


def test_a_domain_under_its_building_label_runs_only_once_relabelled(xen: Cli) -> None:
    """Xen's `nomigrate_t`: built under another label, not run under it, then relabelled."""
    why = xen.denied("start", "built")
    assert "no rule allows dom0_t nomigrate_t_building:domain unpause [TE-NO-RULE]" in why
    assert {row["name"]: row["state"] for row in xen.rows("ps")}["built"] == "paused"
    xen.ok("relabel", "built", NOMIGRATE)
    xen.ok("resume", "built")
    assert xen.ok("exec", "built", "--", "echo", "alive") == "alive\n"
    assert {row["name"]: row["label"] for row in xen.rows("ps")}["built"] == NOMIGRATE
    xen.ok("stop", "built")


def test_the_trail_holds_every_question_and_its_answer(xen: Cli) -> None:
    """The denial's number leads to its record, with all that was asked; the chain holds."""
    answer = xen.run("connect", "vault", "web", "--json")
    assert answer.returncode == 3
    (record,) = (r for r in xen.rows("audit", "tail") if f'"record": {r["n"]}' in answer.stdout)
    fields = record["fields"]
    assert record["event"] == "deny"
    assert fields["parties"] == {"source": ISOLATED, "sink": DOM_U}
    assert fields["why"]["code"] == "TE-NO-RULE"
    assert [rule.split(": ")[1] for rule in fields["rules"]].count("TE-NO-RULE") == 4
    shown = xen.ok("why", str(record["n"]))
    assert "flask: TE-NO-RULE: no rule allows isolated_domU_t domU_t:grant map_read" in shown
    (orders,) = (row for row in xen.rows("channels") if row["port"] == "orders")
    shown = xen.ok("why", str(orders["record"]))
    assert shown.splitlines()[0] == f"record {orders['record']}: allow"
    assert "flask: TE-ALLOWED: domU_t may map_read, map_write domU_t (grant)" in shown
    assert "records proven" in xen.ok("audit", "verify")


def test_what_both_modules_of_a_stack_allow_carries_bytes(stack: Cli) -> None:
    """Type enforcement and Simple Type Enforcement both allow; the label shows both parts."""
    assert sends(stack, "bank-a", "broker", "orders", "buy 100") == "buy 100\n"
    label = stack.ok("exec", "broker", "--", "cat", "/run/skerry/label").strip()
    assert label == f"acm=broker,flask={DOM_U}"


@pytest.mark.parametrize(
    ("domain", "refuses", "code", "allows"),
    [
        ("sealed", "flask", "TE-NO-RULE", "acm: allows: label bank-a"),
        ("books", "acm", "STE-NO-SHARED-TYPE", "flask: allows: domU_t_channel may bind domU_t"),
    ],
)
def test_either_module_of_a_stack_refuses_a_channel(
    stack: Cli, domain: str, refuses: str, code: str, allows: str
) -> None:
    """One module's no is enough; the denial lists both answers, and neither guest gets a port."""
    before = [ports(stack, end) for end in (domain, "broker")]
    why = stack.denied("connect", domain, "broker", "--name", "gossip")
    assert f"module:     {refuses}" in why
    assert f"  {refuses}: denies: " in why
    assert f"[{code}]" in why
    assert f"  {allows}" in why
    assert [ports(stack, end) for end in (domain, "broker")] == before


def test_either_module_of_a_stack_refuses_a_start(stack: Cli) -> None:
    """The wall keeps the competitor out, Flask what it may not create; each answer is listed."""
    wall = stack.denied("start", "bank-b")
    assert "acm: denies: " in wall
    assert "[CW-CONFLICT]" in wall
    assert "flask: allows: " in wall
    create = stack.denied("start", "unmade")
    assert "no rule allows dom0_t nomigrate_t:domain create [TE-NO-RULE]" in create
    assert "acm: allows: " in create


def test_the_wall_of_a_stack_opens_when_the_competitors_have_ended(stack: Cli) -> None:
    """The control of the refused start: it is the running bank A that keeps bank B out."""
    for domain in ("bank-a", "sealed", "books"):
        stack.ok("kill", domain)
    assert "bank-b is running" in stack.ok("start", "bank-b")

"""An uplink that a domain serves: a router of the user's between a client and its own uplink."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from skerry.device.uplink.words import GATEWAY
from tests.support.cli import Cli
from tests.support.uplink import HTTP, ByteServer

POLICY = """
[policy]
name = "served"
version = "1.0"
bootstrap = "SystemManagement"
[simple-type-enforcement]
types = ["SystemManagement", "web", "inner"]
[labels.SystemManagement]
ste = ["SystemManagement", "web", "inner"]
[labels.client]
ste = ["inner"]
[labels.router]
ste = ["inner", "web"]
[resources.outside]
ste = "web"
"""
SYSTEM = """
name = "served"
policy = "policy.toml"
[jail]
accept-missing = ["cgroup", "swap"]
[domains.client]
label = "client"
uses = ["web"]
[domains.router]
label = "router"
uses = ["outside"]
[resources.web]
kind = "uplink"
served-by = "router"
[resources.outside]
kind = "uplink"
label = "outside"
allow = ["127.0.0.1:{port}"]
"""


class Served(NamedTuple):
    """The system and the server outside."""

    cli: Cli
    server: ByteServer


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Both domains, their cards up, and the router relaying."""
    cli = Cli()
    with contextlib.ExitStack() as stack:
        stack.callback(cli.down)
        server = stack.enter_context(contextlib.closing(ByteServer(HTTP)))
        (cli.home / "policy.toml").write_text(POLICY)
        (cli.home / "system.toml").write_text(SYSTEM.format(port=server.port))
        cli.ok("up", str(cli.home / "system.toml"), "--detach")
        sh(cli, "client", "link-up web 10.7.0.2/24")
        sh(cli, "router", "link-up web 10.7.0.1/24; uplink-up outside")
        relay = f"nc -ll -p 8080 -e nc {GATEWAY} {server.port}"
        sh(cli, "router", f"setsid {relay} > /dev/null 2>&1 < /dev/null &")
        yield Served(cli, server)


def sh(cli: Cli, domain: str, script: str) -> str:
    """Run a script in a guest; return what it said."""
    return cli.ok("exec", domain, "--", "timeout", "30", "sh", "-c", f"{{ {script}\n}} 2>&1")


def test_a_client_reaches_through_the_router_what_that_lets_through(served: Served) -> None:
    """The client has a link and no uplink of the host's; what it gets it gets of the router."""
    kinds = {(row["kind"], row["source"], row["sink"]) for row in served.cli.rows("channels")}
    assert kinds == {("link", "client", "router"), ("uplink", "router", "outside")}
    said = sh(served.cli, "client", "timeout 10 wget -q -O - http://10.7.0.1:8080/")
    assert said.strip() == "hello"
    assert served.server.connections == 1


def test_without_the_router_there_is_no_way(served: Served) -> None:
    """Not by the gateway's address, and the policy gives the client no uplink of its own."""
    script = f"timeout 5 wget -q -O - http://{GATEWAY}:{served.server.port}/; true"
    assert "hello" not in sh(served.cli, "client", script)
    assert "[STE-NO-SHARED-TYPE]" in served.cli.denied("connect", "client", "outside")

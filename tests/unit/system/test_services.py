"""Where the policy manager and the audit replica live, as a system file says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.system.load import parse_system
from skerry.system.model import AUDIT_DOMAIN, MANAGER_DOMAIN, System

HEAD = 'name = "x"\npolicy = "dummy"\n'
DOMAIN = '[domains.a]\nlabel = "a"\n'


def parsed(more: str, domains: str = DOMAIN) -> System:
    """Read a small system with some more at its head."""
    return parse_system(HEAD + more + domains, Path("/srv/system.toml"))


@pytest.mark.parametrize(
    ("more", "services"),
    [
        ("", []),
        ('policy-manager = "process"\naudit = "process"\n', []),
        ('policy-manager = "domain"\n', [MANAGER_DOMAIN]),
        ('audit = "domain"\n', [AUDIT_DOMAIN]),
        ('policy-manager = "domain"\naudit = "domain"\n', [MANAGER_DOMAIN, AUDIT_DOMAIN]),
        ('audit.home = "domain"\naudit.rotate = "1M"\n', [AUDIT_DOMAIN]),
    ],
)
def test_each_service_may_live_in_a_domain(more: str, services: list[str]) -> None:
    """Both are processes where the file says nothing; the domains boot images of their names."""
    system = parsed(more)
    assert list(system.services) == services
    assert system.images == {"minimal", *services}
    assert list(system.domains) == ["a"]


def test_the_table_of_the_trail_says_it_beside_the_rest() -> None:
    """A segment's length stays what it is."""
    audit = parsed('audit.home = "domain"\naudit.rotate = "2M"\n').audit
    assert (audit.home, audit.rotate) == ("domain", 2 << 20)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('policy-manager = "vm"\n', "policy-manager must be"),
        ("policy-manager = true\n", "policy-manager must be"),
        ('audit = "vm"\n', "audit must be"),
        ("audit = 3\n", "audit must be a table"),
        ('audit.home = "disk"\n', "home must be"),
    ],
)
def test_another_home_is_a_mistake_at_its_line(more: str, message: str) -> None:
    """Line three, where it stands."""
    with pytest.raises(InputError) as caught:
        parsed(more)
    (problem,) = caught.value.problems
    assert (problem.line, problem.message[: len(message)]) == (3, message)


@pytest.mark.parametrize("name", [MANAGER_DOMAIN, AUDIT_DOMAIN])
def test_a_domain_may_not_have_a_service_s_name(name: str) -> None:
    """Only where that service is a domain; the control: elsewhere it is a name like another."""
    domains = f'[domains.{name}]\nlabel = "a"\n'
    key = {MANAGER_DOMAIN: "policy-manager", AUDIT_DOMAIN: "audit"}[name]
    with pytest.raises(InputError, match="the node's own domain"):
        parsed(f'{key} = "domain"\n', domains)
    assert name in parsed(f'{key} = "process"\n', domains).domains
    resource = f'[resources.{name}]\nkind = "switch"\nlabel = "a"\n'
    with pytest.raises(InputError, match="the node's own domain"):
        parsed(f'{key} = "domain"\n', DOMAIN + resource)

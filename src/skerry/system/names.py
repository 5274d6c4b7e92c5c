"""What a system file says of services: the names by which guests ask for each other.

The rule: a name is declared here with the label that may serve it, or nobody can ask for it; so no
guest can take a name before the one that it belongs to.
"""

from __future__ import annotations

from skerry.system.model import ServiceSpec
from skerry.system.section import NAME, NAME_WORDS, Section, echo

MAX_SERVICES = 256
"""Most services of a system; one more is an error."""

MAX_SERVICE_NAME = 20
"""Longest name of a service, in characters: the ports of its streams have it before a number. A
longer one is an error."""

RESERVED = "skerry"
"""No service has this name, as no port may begin with it: those of its streams would."""


def read_names(section: Section) -> dict[str, ServiceSpec]:
    """Read every `[services.NAME]`."""
    services: dict[str, ServiceSpec] = {}
    for name in section.names():
        if not NAME.fullmatch(name):
            section.problem(name, f"a service's name must be {NAME_WORDS}, not {echo(name)}")
        if name == RESERVED:
            section.problem(name, f"a service cannot be named {name!r}: the node's ports are")
        if len(name) > MAX_SERVICE_NAME:
            section.problem(name, f"a service's name has {MAX_SERVICE_NAME} characters at most")
        table = section.section(name)
        table.require("offered-by", 'offered-by = "the label that may serve it"')
        services[name] = ServiceSpec(
            name=name,
            offered_by=table.label("offered-by") if "offered-by" in table else "",
            public=table.flag("public", False),
        )
        table.end()
    if len(services) > MAX_SERVICES:
        section.problem(name, f"{len(services)} services; there can be {MAX_SERVICES}")
    return services

"""`skerry flow`: the group. Each command is imported when it is typed."""

from __future__ import annotations

import click

from skerry.cli.lazy import LazyGroup

PLACES = {
    "graph": "skerry.cli.flow_graph:graph",
    "reach": "skerry.cli.flow_ask:reach",
    "paths": "skerry.cli.flow_ask:paths",
    "cut": "skerry.cli.flow_ask:cut",
    "prove": "skerry.cli.flow_prove:prove",
    "verify": "skerry.cli.flow_prove:verify",
    "map": "skerry.cli.flow_graph:permission_map",
}

SUMMARIES = {
    "graph": "Count the flows, draw them or write them out.",
    "reach": "List what information from labels can come to.",
    "paths": "Show by which chains, and by which rules.",
    "cut": "Find the fewest labels or flows to remove.",
    "prove": "Prove 'A -/-> B except G', or show the path.",
    "verify": "Check the certificate of a proof.",
    "map": "Write the permission map of a policy.",
}


@click.group(cls=LazyGroup, places=PLACES, summaries=SUMMARIES)
def flow() -> None:
    """Ask how information can flow over a policy or a system; nothing is started.

    Labels are types of a FLASK policy, labels of an ACM policy, combinations of both for several
    policies (acm=broker,flask=domU_t), or a system's domains and resources. An attribute stands
    for its types, a pattern such as 'bank-*' for what it matches.
    """

"""`skerry policy`: the group. Each command is imported when it is typed."""

from __future__ import annotations

import click

from skerry.cli.lazy import LazyGroup

PLACES = {
    "check": "skerry.cli.policy_show:check",
    "show": "skerry.cli.policy_show:show",
    "diff": "skerry.cli.policy_diff:diff",
    "replay": "skerry.cli.policy_replay:replay",
    "convert": "skerry.cli.policy_show:convert",
    "decide": "skerry.cli.policy_ask:decide",
    "admit": "skerry.cli.policy_ask:admit",
    "load": "skerry.cli.policy_live:load",
    "set-boolean": "skerry.cli.policy_live:set_boolean",
    "keygen": "skerry.cli.policy_sign:keygen",
    "sign": "skerry.cli.policy_sign:sign",
}

SUMMARIES = {
    "check": "Check a policy file alone.",
    "show": "Show the policy in force, or a file's.",
    "diff": "Show what becomes allowed and what denied.",
    "replay": "Ask a trail's decisions again under another policy.",
    "convert": "Write an ACM policy in its other form.",
    "decide": "Decide one request, or a batch of them.",
    "admit": "Ask the Chinese Wall question.",
    "load": "Bring another policy into force.",
    "set-boolean": "Set booleans of the policy in force.",
    "keygen": "Make a pair of keys to sign policies with.",
    "sign": "Sign a policy, or the key that shall follow.",
}


@click.group(cls=LazyGroup, places=PLACES, summaries=SUMMARIES)
def policy() -> None:
    """Check, ask, convert and load policies."""

"""The hook table: each operation, and the questions in Xen's words that it asks.

Each hook is declared once. A question names its parties by role; `source->sink` is the label of
the event-channel end that the source makes toward the sink, i.e. the transition `(source, sink,
event)`. The questions follow what Xen's Flask module asks for the same operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from skerry.label import Label
from skerry.xsm.request import Request


class Question(msgspec.Struct, frozen=True):
    """One access request of a hook, with roles in the place of labels."""

    subject: str
    target: str
    tclass: str
    permissions: tuple[str, ...]


class Hook(msgspec.Struct, frozen=True):
    """One operation that the monitor mediates.

    `when` is `bind` if the question is asked when authority is made, `use` if it is asked each
    time; `admission` says which Chinese Wall question goes with it (`written`: that of a bind, with
    each label that has written the resource; `beside`: whether the operator's label could run
    beside the domain's); `cached` whether the answers may come from the access vector cache.
    """

    name: str
    asks: tuple[Question, ...]
    when: Literal["bind", "use"]
    admission: Literal["", "start", "bind", "written", "beside"] = ""
    cached: bool = True
    what: str = ""


def _q(subject: str, target: str, tclass: str, *permissions: str) -> Question:
    return Question(subject, target, tclass, tuple(sorted(permissions)))


def _event_ends(first: str, second: str) -> tuple[Question, ...]:
    return (
        _q(first, f"{first}->{second}", "event", "create"),
        _q(f"{first}->{second}", second, "event", "bind"),
        _q(second, f"{second}->{first}", "event", "create"),
        _q(f"{second}->{first}", first, "event", "bind"),
    )


def _two_way(first: str, second: str) -> tuple[Question, ...]:
    return (
        *_event_ends(first, second),
        _q(first, f"{first}->{second}", "event", "send"),
        _q(second, f"{second}->{first}", "event", "send"),
        _q(first, second, "grant", "map_read", "map_write"),
        _q(second, first, "grant", "map_read", "map_write"),
    )


def _one_way(source: str, sink: str) -> tuple[Question, ...]:
    return (
        *_event_ends(source, sink),
        _q(source, f"{source}->{sink}", "event", "send"),
        _q(sink, source, "grant", "map_read"),
    )


def _used(domain: str, resource: str, *access: str) -> tuple[Question, ...]:
    return _q(domain, resource, "resource", "use"), _q(domain, resource, "grant", *access)


def _operator(permission: str, what: str) -> Hook:
    asks = (_q("operator", "domain", "domain", permission),)
    return Hook(f"domain_{permission}", asks, "use", what=what)


def _owner(name: str, permission: str, what: str) -> Hook:
    asks = (_q("operator", "security", "security", permission),)
    return Hook(name, asks, "use", cached=False, what=what)


def _opened(name: str, what: str, *asks: Question) -> Hook:
    return Hook(name, asks, "use", "beside", what=what)


def _use(name: str, what: str, *access: str) -> Hook:
    return Hook(name, _used("source", "sink", *access), "bind", "written", what=what)


def _bound(name: str, what: str, *asks: Question) -> Hook:
    return Hook(name, asks, "bind", "bind", what=what)


_TABLE = (
    Hook(
        "domain_create",
        (_q("operator", "domain", "domain", "create"),),
        "bind",
        admission="start",
        what="start a domain",
    ),
    _operator("destroy", "end a domain at once"),
    _operator("shutdown", "ask a domain to end"),
    _operator("pause", "stop a domain's processors"),
    _operator("unpause", "let a domain's processors run"),
    _operator("getdomaininfo", "list a domain"),
    Hook(
        "domain_relabel",
        (
            _q("operator", "domain", "domain2", "relabelfrom"),
            _q("operator", "new", "domain2", "relabelto"),
            _q("domain", "new", "domain", "transition"),
        ),
        "bind",
        admission="start",
        what="give a running domain another label",
    ),
    _bound(
        "channel_two_way",
        "a two-way stream or link between two domains",
        *_two_way("source", "sink"),
    ),
    _bound("channel_one_way", "a one-way stream from source to sink", *_one_way("source", "sink")),
    _bound(
        "memory_read",
        "memory of the source that the sink reads, with a doorbell",
        _q("sink", "source", "grant", "map_read"),
        *_event_ends("source", "sink"),
        _q("source", "source->sink", "event", "send"),
    ),
    _bound(
        "memory_both",
        "memory that both write, with doorbells both ways",
        *_two_way("source", "sink"),
    ),
    _opened("domain_exec", "run a command in a domain", *_two_way("operator", "domain")),
    _opened("domain_console", "read and write a console", *_two_way("operator", "domain")),
    _opened("domain_console_read", "only read a console", *_one_way("domain", "operator")),
    _opened(
        "console_read",
        "only read a console that has a label of its own",
        *_used("operator", "console", "map_read"),
        *_used("domain", "console", "map_read", "map_write"),
    ),
    _opened(
        "console_both",
        "read and write a console that has a label of its own",
        *_used("operator", "console", "map_read", "map_write"),
        *_used("domain", "console", "map_read", "map_write"),
    ),
    Hook(
        "resource_attach",
        (_q("operator", "domain", "resource", "add"),),
        "use",
        what="give a domain a resource, at an operator's wish",
    ),
    Hook("resource_remove", (_q("operator", "sink", "resource", "remove"),), "use", what="release"),
    _use("resource_read", "a domain's use of a resource (sink) that it can only read", "map_read"),
    _use(
        "resource_both",
        "a domain's use of a resource (sink) that it reads and writes",
        "map_read",
        "map_write",
    ),
    _owner("policy_load", "load_policy", "bring another policy into force"),
    _owner("policy_setbool", "setbool", "set a boolean of the policy"),
)

HOOKS: Mapping[str, Hook] = {hook.name: hook for hook in _TABLE}
"""Every hook by its name. The handbook's table of hooks is made from this."""


def expand(
    hook: Hook, parties: Mapping[str, Label], transition: Callable[[Label, Label, str], Label]
) -> tuple[Request, ...]:
    """Return the hook's access requests with the parties' labels put in for their roles.

    Raises `KeyError` if a role of the hook has no party: a defect of the caller.
    """

    def label(role: str) -> Label:
        owner, arrow, peer = role.partition("->")
        return transition(parties[owner], parties[peer], "event") if arrow else parties[role]

    return tuple(
        Request(label(q.subject), label(q.target), q.tclass, q.permissions) for q in hook.asks
    )

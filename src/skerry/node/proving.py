"""What a running node proves before another policy comes into force.

The rules this module keeps: a change is refused if an assertion does not hold under it, and also if
that can't be told: an analysis that fails, or takes longer than its bound, proves nothing. Only
where a change takes away and gives nothing, an analysis that fails does not stand in its way: what
was proven under the policy in force is then still true. What is proven are the assertions of the
system's file and those of its policies; a policy that comes without any keeps those in force. A
file's are proven also of what its change leaves as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from skerry.errors import Denied, InputError, Problem, SkerryError
from skerry.flow.deadline import Deadline, TookTooLong
from skerry.label import Label
from skerry.node.assertions import AnalysisFailed, count, refused, violations
from skerry.node.flows import named_label, source_names
from skerry.node.setup import Setup, carried, carry
from skerry.policy.asserted import NOTHING
from skerry.policy.opening import opens_nothing, same_groups
from skerry.policy.signature import require_signed
from skerry.policy.source import Change, NewBooleans, NewPolicy, Policy, changed


class Proven(NamedTuple):
    """A policy that may come into force, how many assertions hold under it, and what to say.

    `ended` are the assertions in force of the policies before that this one makes no more.
    """

    policy: Policy
    assertions: int
    warnings: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()


def prove_change(
    setup: Setup,
    change: Change,
    after: Setup,
    hook: str,
    deadline: Deadline | None = None,
    written: Mapping[str, frozenset[Label]] | None = None,
) -> Proven:
    """Make another policy of the one in `setup`, and prove the assertions of `after` under it.

    `written` are the labels that have written each resource, as the policy of `after` calls them.
    Raises `Refused` with the paths if one does not hold, `AnalysisFailed` if that can't be told,
    `PolicyError` for a policy or an assertion that is none, `InputError` for booleans or a label
    of an assertion that the policy calls otherwise, and `Unsigned` where the policy must be signed
    and is not.
    """
    if setup.policy_key and isinstance(change, NewPolicy):
        require_signed(setup.policy_key, change.content, change.signature, change.file)
    policy = changed(setup.policy, change)
    new = carried(msgspec.structs.replace(after, written=written or {}), policy)
    if after is setup:
        _require_meant(setup, new)
    total, ended = count(policy, after), _ended(setup.policy, policy)
    limit = deadline or Deadline()
    try:
        # An alarm is not refused for what another one would do on top of it.
        broken = violations(new, limit, alarms=not isinstance(change, NewBooleans))
    except InputError:
        raise
    except Exception as error:  # whatever fails in deciding is a refusal
        if after is not setup or not _still_proven(setup, policy, limit.again()):
            raise _failed(error) from error
        warning = (
            f"the assertions were not proven again ({_words(error)}), but what the policy in force"
            " does not allow this one does not either"
        )
        return Proven(policy, total, (warning,), ended)
    if broken:
        raise refused(broken, hook)
    return Proven(policy, total, ended=ended)


def _require_meant(before: Setup, after: Setup) -> None:
    """Refuse a policy that calls a label otherwise of which the system file asserts something.

    Raises `InputError`.
    """
    problems = []
    for number, one in enumerate(before.system.asserts):
        line = before.system.line(("assert", number, "never"))
        for name in source_names(before, one.source):
            label = named_label(before, name)
            if label is None or named_label(after, name) == carry(after.stack, label, before.stack):
                continue
            message = f"{name} means another label under that policy; name it anew in the file"
            problems.append(Problem(str(before.system.path), line, message))
    if problems:
        raise InputError(problems)


def _ended(before: Policy, after: Policy) -> tuple[str, ...]:
    """Return what is asserted no more, as far as it is written otherwise or of other flows."""
    found: list[str] = []
    pairs = zip(after.stack.modules, after.sources, strict=True)
    sources = {module.name: source for module, source in pairs}
    for module, old in zip(before.stack.modules, before.sources, strict=True):
        new = sources.get(module.name)
        kept = (new and new.assertions) or NOTHING
        found += [
            str(one)
            for one in (old.assertions or NOTHING).written
            if not msgspec.structs.replace(old.assertions or NOTHING, written=(one,)).within(kept)
        ]
    return tuple(found)


def staying(wanted: Setup, before: Setup, names: Iterable[str]) -> Setup:
    """Return a setup in which some domains are what they were before, under its own policy."""
    old = carried(before, wanted.policy)
    names = set(names)
    mine = {name: old.system.domains[name] for name in names}
    system = msgspec.structs.replace(wanted.system, domains={**wanted.system.domains, **mine})
    consoles = {
        name: label
        for setup, own in ((wanted, False), (old, True))
        for name, label in setup.consoles.items()
        if (name in names) is own
    }
    labels = {**wanted.labels, **{name: old.labels[name] for name in names}}
    return msgspec.structs.replace(wanted, system=system, labels=labels, consoles=consoles)


def require_holding(defined: Setup, kept: Mapping[str, Label] | None = None) -> None:
    """Prove what a file asserts of a setup, and of what becomes of it where steps are refused.

    `kept` holds the domains that go on under another label than the setup's. Raises `Refused` with
    the paths of the assertions that do not hold, and as `violations` does.
    """
    kept = kept or {}
    running = msgspec.structs.replace(defined, labels={**defined.labels, **kept})
    shown = "".join(f"; {name} keeps the label {label}" for name, label in sorted(kept.items()))
    for setup in [defined] if running.labels == defined.labels else [defined, running]:
        if broken := violations(setup):
            kept_as = [msgspec.structs.replace(one, text=one.text + shown) for one in broken]
            raise refused(kept_as, "policy_load")


def prove_labels(setup: Setup, hook: str, deadline: Deadline | None = None) -> None:
    """Prove a setup's assertions of the labels in it, before one of them is given.

    Raises `Refused` with the paths if one does not hold, `AnalysisFailed` if that can't be told.
    """
    try:
        broken = violations(setup, deadline)
    except Exception as error:  # whatever fails in deciding is a refusal
        raise _failed(error, "give another label, or assert less") from error
    if broken:
        raise refused(broken, hook)


def _failed(
    error: Exception,
    fix: str = "assert less, or of fewer labels; a policy that only takes away needs no proof",
) -> Denied:
    code = error.code if isinstance(error, TookTooLong) else AnalysisFailed.code
    return AnalysisFailed(
        f"the assertions could not be proven: {_words(error)}", fix=fix, code=code
    )


def _words(error: Exception) -> str:
    return error.message if isinstance(error, SkerryError) else type(error).__name__


def _still_proven(setup: Setup, policy: Policy, limit: Deadline) -> bool:
    """Tell whether everything asserted under a policy was proven under the one in force."""
    try:
        before, after = setup.policy, policy
        for old, new in zip(before.sources, after.sources, strict=True):
            asserted = new.assertions or NOTHING
            if not asserted.within(old.assertions or NOTHING):
                return False
            names = asserted.names()
            for one, two in zip(before.stack.modules, after.stack.modules, strict=True):
                if not same_groups(one, two, names):
                    return False
        return opens_nothing(setup.stack, policy.stack, limit.check)
    except Exception:  # it can't be told
        return False

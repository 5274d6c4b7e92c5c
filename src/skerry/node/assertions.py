"""Checks assertions before anything starts, and before another policy comes into force.

There are those of the system file, about its domains, and those of a policy, about its labels. The
flows that count for the first are not those that the file configures but all that the policy would
let an operator bind between the file's domains: an assertion that holds stays true under
`connect`. Of labels given later it is asked again: see `skerry.node.live_labels`.

The rule this module keeps: what can't be proven, for whatever reason, does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from skerry.errors import Denied, InputError, PolicyError, Problem
from skerry.flow.claim import Claim, never_claim
from skerry.flow.deadline import Check, Deadline, unbounded
from skerry.flow.graph import Graph
from skerry.flow.permission_map import shipped_map
from skerry.flow.policy import Options, policy_graph
from skerry.flow.proof import prove
from skerry.node.flows import HISTORY, SystemFlows, named_label, source_names
from skerry.node.setup import Setup, carried, load_setup
from skerry.node.written import with_writers
from skerry.policy.asserted import Asserted, Assertions
from skerry.policy.fitness import absent, lacking, lets_unknown_pass
from skerry.policy.opening import opens_nothing
from skerry.policy.source import NewBooleans, Policy, changed
from skerry.system.model import LABEL
from skerry.xsm.explain import Explanation, Refused
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.request import Answer, Rule
from skerry.xsm.stack import Stack

BROKEN = "ASSERTION-BROKEN"
"""The code of a refusal because an assertion does not hold."""

_SHOWN = 8
_RULES = 4


class Step(msgspec.Struct, frozen=True):
    """One flow of a path, with the rules that allow it."""

    source: str
    sink: str
    rules: tuple[str, ...]


class Violation(msgspec.Struct, frozen=True):
    """An assertion that does not hold, with the shortest path that breaks it."""

    file: str
    line: int
    text: str
    path: tuple[str, ...]
    steps: tuple[Step, ...] = ()


class AnalysisFailed(Denied):
    """Assertions could be neither proven nor refuted, so they are taken not to hold."""

    code = "ASSERTION-NOT-PROVEN"


def permitted_flows(setup: Setup) -> dict[str, set[str]]:
    """Return, for each domain and resource, to which of them the policy would let it send.

    What a domain may write flows into the resource, and out of it into each that may read it.
    """
    graph = SystemFlows(setup).graph()
    return {name: set(graph.named(row)) for name, row in zip(graph.names, graph.rows, strict=True)}


def claims_of(setup: Setup) -> list[Claim]:
    """Return the file's assertions as claims, in its order. Raises `InputError`."""
    system = setup.system
    claims = _claims(
        [
            Asserted(
                f"{one.source} -> {one.sink}",
                one.except_,
                str(system.path),
                system.line(("assert", number, "never")),
                one.history,
            )
            for number, one in enumerate(system.asserts)
        ]
    )
    return [
        msgspec.structs.replace(
            claim, sources=tuple(_source(setup, name) for name in source_names(setup, one.source))
        )
        for claim, one in zip(claims, system.asserts, strict=True)
    ]


def _source(setup: Setup, name: str) -> str:
    """Return how the graph calls a source; a label is what the policy makes of its text."""
    label = named_label(setup, name)
    return name if label is None else f"{LABEL}{label}"


def load_proven(path: Path) -> Setup:
    """Load a system under which all that is asserted holds.

    What the state directory knows of who has written its resources counts. Raises `Refused` with
    the paths where something does not hold, `InputError` with every problem of the files, and as
    `violations` does.
    """
    setup = load_setup(path)
    broken = violations(with_writers(setup))
    if broken:
        raise refused(broken)
    return setup


def violations(
    setup: Setup, deadline: Deadline | None = None, *, alarms: bool = True
) -> list[Violation]:
    """Return every assertion of the file and of its policies that does not hold.

    With `alarms`, none of the file's alarms may break one either: in the emergency it would be
    refused. Raises `InputError` for an assertion that says nothing, `AnalysisFailed` where it can't
    be told, and `TookTooLong` beyond the deadline (by default `MAX_ANALYSIS_S` from now on).
    """
    limit = deadline or Deadline()
    broken = _violations(setup, limit)
    for name, alarmed in _alarmed(setup, limit) if alarms and not broken else ():
        for one in _violations(alarmed, limit):
            broken.append(msgspec.structs.replace(one, text=f"under the alarm {name}: {one.text}"))
    return broken


def _violations(setup: Setup, limit: Deadline) -> list[Violation]:
    broken = policy_violations(setup.policy, limit)
    if setup.system.asserts:
        broken += _broken(SystemFlows(setup, deadline=limit).graph(), claims_of(setup), limit)
    return broken


def _alarmed(setup: Setup, limit: Deadline) -> Iterator[tuple[str, Setup]]:
    """Yield the setup under each alarm that lets something flow which does not flow without it."""
    for name, alarm in setup.system.alarms.items() if count(setup.policy, setup) else ():
        if alarm.booleans:
            try:
                policy = changed(setup.policy, NewBooleans(alarm.booleans))
            except InputError:  # the policy lacks a boolean: then the alarm sets none
                continue
            if not opens_nothing(setup.stack, policy.stack, limit.check):
                yield name, carried(setup, policy)


def policy_violations(policy: Policy, deadline: Deadline | None = None) -> list[Violation]:
    """Return every assertion of some policies that does not hold, each asked of its policy alone.

    Raises as `violations` does, `PolicyError` for an assertion that says nothing.
    """
    limit = deadline or Deadline()
    broken: list[Violation] = []
    for source, module in zip(policy.sources, policy.stack.modules, strict=True):
        asserted = source.assertions
        if asserted and asserted.written:
            try:
                claims = _claims(asserted.written)
                graph = _graph(Stack([module]), asserted, limit)
                broken += _broken(graph, claims, limit)
            except InputError as error:
                raise PolicyError(error.problems) from None
    return broken


def count(policy: Policy, setup: Setup | None = None) -> int:
    """Return how many assertions there are in policies, and in a system's file."""
    written = sum(len(s.assertions.written) for s in policy.sources if s.assertions)
    return written + (len(setup.system.asserts) if setup else 0)


def refused(broken: Sequence[Violation], hook: str = "") -> Refused:
    """Return the refusal for assertions that do not hold: each with its path and the rules."""
    first, more = broken[0], len(broken) - _SHOWN
    texts = dict.fromkeys(violation.text for violation in broken[:_SHOWN])
    sentence = "; ".join([*texts, *([f"and {more} more"] if more > 0 else [])])
    answers: list[Answer] = []
    for violation in broken[:_SHOWN]:
        place = Rule("assertion", violation.file, violation.line)
        answers.append(Answer("assert", False, BROKEN, violation.text, place))
        for step in violation.steps:
            rest = len(step.rules) - _RULES
            rules = [*step.rules[:_RULES], *([f"and {rest} more"] if rest > 0 else [])]
            reason = f"{step.source} -> {step.sink}: {'; '.join(rules)}"
            answers.append(Answer("flow", True, "FLOW-POSSIBLE", reason))
    explanation = Explanation(
        False,
        BROKEN,
        "assert",
        sentence,
        "assertion",
        first.file,
        first.line,
        hook=hook,
        answers=tuple(answers),
    )
    error = Refused(explanation)
    error.fix = "change the rules of the path, or what the policy or the system file asserts"
    return error


def _past(steps: Sequence[Step]) -> str:
    """Return which steps of a path only what was written before makes."""
    only = [step.rules[0] for step in steps if step.rules and step.rules[0].startswith(HISTORY)]
    return f" ({'; '.join(only)})" if only else ""


def _claims(written: Sequence[Asserted]) -> list[Claim]:
    problems: list[Problem] = []
    claims: list[Claim] = []
    for one in written:
        try:
            claims.append(
                never_claim(one.never, one.except_, one.file, one.line, history=one.history)
            )
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return claims


def require_rules(stack: Stack, options: Options) -> None:
    """Refuse to ask a policy what it lets pass without a rule, because it does not know it.

    Raises `InputError` where that is a permission which counts by the shipped map. A policy that
    knows nothing of domains is asked for its rules alone, as no node would take it.
    """
    flows = shipped_map("xen").classes
    for module in stack.modules:
        if not isinstance(module, FlaskModule):
            continue
        policy = module.policy
        if not lets_unknown_pass(policy) or absent(policy):
            continue
        passed = [
            f"{tclass} {{ {' '.join(names)} }}"
            for tclass, names in lacking(policy).items()
            if tclass not in options.exclude_classes
            and any(flows[tclass][name].weight >= options.min_weight for name in names)
        ]
        if passed:
            message = (
                "handle_unknown is allow, so these are allowed to everybody, and no rule says so:"
                f" {', '.join(passed)}; add the classes, or compile it with handle_unknown deny"
            )
            raise InputError([Problem(policy.file, 0, message)])


def known_graph(stack: Stack, options: Options, check: Check = unbounded) -> Graph:
    """Make the graph of a policy whose rules say all that it allows, as far as that counts.

    Raises `InputError` as `policy_graph` does, and but for `skip_unknown` as `require_rules` does.
    """
    if not options.skip_unknown:
        require_rules(stack, options)
    return policy_graph(stack, options, check)


def _graph(stack: Stack, asserted: Assertions, limit: Deadline) -> Graph:
    options = Options(
        min_weight=asserted.min_weight,
        exclude_classes=asserted.exclude_classes,
        contexts=asserted.contexts,
    )
    try:
        _require_classes(stack, asserted)
        return known_graph(stack, options, limit.check)
    except InputError as error:
        placed = InputError([_placed(asserted, problem) for problem in error.problems])
        raise AnalysisFailed(f"its assertions can't be proven: {placed}") from None


def _require_classes(stack: Stack, asserted: Assertions) -> None:
    """Raise `InputError` with the line of each class that a policy lacks."""
    problems = [
        Problem(asserted.file, asserted.places.get(name, 0), f"the policy has no class {name!r}")
        for module in stack.modules
        if isinstance(module, FlaskModule)
        for name in asserted.exclude_classes
        if module.policy.class_named(name) is None
    ]
    if problems:
        raise InputError(problems)


def _placed(asserted: Assertions, problem: Problem) -> Problem:
    """Return what is wrong with a context with the line that names it."""
    named = (text for text in asserted.contexts if repr(text) in problem.message)
    line = asserted.places.get(next(named, ""), 0) if problem.file == "context" else 0
    return Problem(asserted.file, line, problem.message) if line else problem


def _broken(graph: Graph, claims: Sequence[Claim], deadline: Deadline) -> list[Violation]:
    broken: list[Violation] = []
    problems: list[Problem] = []
    for claim in claims:
        deadline.check()
        try:
            found = prove(graph, claim, check=deadline.check)
        except InputError as error:
            problems += error.problems
            continue
        if found.holds:
            continue
        words = f"never {','.join(claim.sources)} -> {','.join(claim.sinks)}"
        steps = tuple(Step(a, b, graph.reasons(a, b)) for a, b in pairwise(found.path))
        text = f"{words} does not hold: {' -> '.join(found.path)}{_past(steps)}"
        broken.append(Violation(claim.file, claim.line, text, found.path, steps))
    if problems:
        raise InputError(problems)
    return broken

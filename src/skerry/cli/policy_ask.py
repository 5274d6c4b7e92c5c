"""`skerry policy decide` and `admit`: questions to policies in files, without a node.

The rule this module keeps: these commands decide with the very modules that a node decides with,
and word the answer with `xsm.explain` alone.
"""

from __future__ import annotations

import json
import sys

import click

from skerry.cli.common import json_option, parse_booleans, policies_option
from skerry.errors import InputError, Problem, UnknownLabel
from skerry.label import Label, make_label
from skerry.policy.source import load_stack
from skerry.policy.update import with_booleans
from skerry.xsm.classes import CLASSES
from skerry.xsm.explain import Explanation, explain, explain_decision
from skerry.xsm.flask.module import SECURITY, FlaskModule
from skerry.xsm.request import Request, Verdict
from skerry.xsm.stack import Stack

DENIED = 3
"""Exit code of a decision that is a denial."""


@click.command()
@policies_option
@click.option("--batch", metavar="FILE", help="Lines SUBJECT TARGET CLASS; - reads the input.")
@click.option("--boolean", "booleans", multiple=True, metavar="NAME=0|1", help="Set a boolean.")
@json_option
@click.argument("words", nargs=-1, metavar="[SUBJECT TARGET CLASS [PERMISSION]...]")
def decide(
    policies: tuple[str, ...],
    batch: str | None,
    booleans: tuple[str, ...],
    as_json: bool,
    words: tuple[str, ...],
) -> None:
    """Decide one request and explain the answer (exit 3 for a denial), or a batch of them.

    Without permissions, all those of the class are asked. A batch answers each line with a line
    of JSON. With several policies a label is written acm=broker,flask=user:role:type.
    """
    values = parse_booleans(booleans)
    stack = load_stack(policies)
    if values:
        stack = with_booleans(stack, values)
    if batch is not None:
        from skerry.cli.policy_batch import decide_batch

        if words:
            raise click.UsageError("--batch takes its questions from the file alone")
        decide_batch(stack, batch)
        return
    if len(words) < 3:
        raise click.UsageError("name SUBJECT, TARGET and CLASS")
    _answer(_decide_one(stack, words[0], words[1], words[2], words[3:]), as_json)


@click.command()
@policies_option
@click.option("--running", default="", metavar="LABEL,LABEL...", help="Labels that run now.")
@json_option
@click.argument("label")
def admit(policies: tuple[str, ...], running: str, as_json: bool, label: str) -> None:
    """Ask the Chinese Wall whether LABEL may start beside the running ones (exit 3: no)."""
    stack = load_stack(policies)
    started = make_label(label, stack.names)
    beside = [make_label(text, stack.names) for text in _split_labels(running, stack.names)]
    answers = stack.admit(started, beside)
    allowed = all(answer.allowed for answer in answers)
    verdict = Verdict("domain_create", allowed, (), answers, 0)
    _answer(explain(verdict, subject=started), as_json)


def _answer(explanation: Explanation, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(explanation.as_dict()))
    if not explanation.allowed:
        click.echo(explanation.text(), err=True)
        sys.exit(DENIED)
    if not as_json:
        click.echo(explanation.text())


def askable_permissions(stack: Stack, tclass: str) -> frozenset[str]:
    """Return the permissions of a class that may be asked. Raises `InputError` if there is none.

    FLASK policies bring classes of their own; the other modules know Xen's and `share`.
    """
    flask = next((m for m in stack.modules if isinstance(m, FlaskModule)), None)
    if flask is None:
        known = CLASSES
    else:
        known = {name: frozenset(c.permissions) - {""} for name, c in flask.classes.items()}
        if len(stack.modules) > 1:
            known = {**CLASSES, **known}
    if tclass not in known:
        shown = sorted(known) if len(known) < 40 else f"{len(known)}, see `skerry policy show`"
        listed = shown if isinstance(shown, str) else ", ".join(shown)
        raise InputError([Problem("argument", 0, f"no class {tclass!r}; known: {listed}")])
    return known[tclass]


def _decide_one(
    stack: Stack, subject: str, target: str, tclass: str, permissions: tuple[str, ...]
) -> Explanation:
    known = askable_permissions(stack, tclass)
    unknown = sorted(set(permissions) - known)
    if unknown:
        shown = ", ".join(sorted(known))
        message = f"class {tclass} has no {unknown[0]!r}; it has {shown}"
        raise InputError([Problem("argument", 0, message)])
    asked = tuple(sorted(set(permissions or known)))
    labels = read_label(stack, subject, "argument", 0), read_label(stack, target, "argument", 0)
    return explain_decision(stack.decide(Request(*labels, tclass, asked), 0))


def read_label(stack: Stack, untrusted_text: str, file: str, line: int) -> Label:
    """Read a label of a question; a name that ACM lacks is left to the decision.

    Raises `InputError` for what is a mistake in typing: a missing part, or no context.
    """
    try:
        label = make_label(untrusted_text, stack.names)
        for module in stack.modules:
            text = label.of(module.name)
            if isinstance(module, FlaskModule) and text != SECURITY:
                module.check_label(text, "domain")
    except UnknownLabel as error:
        message = str(error)
        if len(stack.names) > 1 and "=" not in untrusted_text:
            parts = ",".join(f"{name}=..." for name in stack.names)
            message += f"; with several policies, write {parts}"
        raise InputError([Problem(file, line, message)]) from None
    return label


def _split_labels(text: str, modules: tuple[str, ...]) -> list[str]:
    """Split `a,b` into labels, or `acm=a,flask=b;acm=c,flask=d` where labels have parts."""
    if not text:
        return []
    parts = any(f"{module}=" in text for module in modules)
    return [label.strip() for label in text.split(";" if parts else ",") if label.strip()]

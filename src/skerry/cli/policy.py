"""`skerry policy`: the commands that need no running node.

The rule this module keeps: these commands decide with the very modules that a node decides with,
and word the answer with `xsm.explain` alone. Everything but click is imported when a command
runs, so that the other commands start fast.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from skerry.errors import InputError
    from skerry.xsm.explain import Explanation
    from skerry.xsm.stack import Stack

DENIED = 3
"""Exit code of a decision that is a denial."""

MAX_BATCH_LINE = 8192
"""Longest line of a batch, in characters; a longer one ends the batch with an error."""


_POLICIES = click.option(
    "--policy",
    "policies",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Policy file, or the word dummy. Several: all must allow.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")


@click.group()
def policy() -> None:
    """Check, ask, convert and load policies."""


@policy.command()
@click.argument("file")
@_JSON
def check(file: str, as_json: bool) -> None:
    """Check a policy file alone: errors (exit 2) and warnings, with file and line."""
    from skerry.policy.lint import find_warnings
    from skerry.policy.load import load_acm, module_info
    from skerry.xsm.acm.module import AcmModule

    model = load_acm(file)
    warnings = find_warnings(model)
    if as_json:
        shown = [{"file": w.file, "line": w.line, "message": w.message} for w in warnings]
        click.echo(json.dumps({**module_info(AcmModule(model)), "warnings": shown}))
        return
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    ending = "" if len(warnings) == 1 else "s"
    click.echo(f"{file}: sound, {len(model.labels)} labels, {len(warnings)} warning{ending}")


@policy.command()
@_POLICIES
@click.option("--batch", metavar="FILE", help="Lines SUBJECT TARGET CLASS; - reads the input.")
@click.option("--boolean", "booleans", multiple=True, metavar="NAME=0|1", help="Set a boolean.")
@_JSON
@click.argument("words", nargs=-1, metavar="[SUBJECT TARGET CLASS [PERMISSION]...]")
def decide(
    policies: tuple[str, ...],
    batch: str | None,
    booleans: tuple[str, ...],
    as_json: bool,
    words: tuple[str, ...],
) -> None:
    """Decide one request and explain the answer (exit 3 for a denial), or a batch of them.

    Without permissions, all those of the class are asked.
    """
    from skerry.policy.load import load_stack

    stack = load_stack(policies)
    _refuse_booleans(booleans, policies[0])
    if batch is not None:
        if words:
            raise click.UsageError("--batch takes its questions from the file alone")
        _decide_batch(stack, batch)
        return
    if len(words) < 3:
        raise click.UsageError("name SUBJECT, TARGET and CLASS")
    _answer(_decide_one(stack, words[0], words[1], words[2], words[3:]), as_json)


@policy.command()
@_POLICIES
@click.option("--running", default="", metavar="LABEL,LABEL...", help="Labels that run now.")
@_JSON
@click.argument("label")
def admit(policies: tuple[str, ...], running: str, as_json: bool, label: str) -> None:
    """Ask the Chinese Wall whether LABEL may start beside the running ones (exit 3: no)."""
    from skerry.label import make_label
    from skerry.policy.load import load_stack
    from skerry.xsm.explain import explain
    from skerry.xsm.request import Verdict

    stack = load_stack(policies)
    started = make_label(label, stack.names)
    beside = [make_label(text, stack.names) for text in _split_labels(running, stack.names)]
    answers = stack.admit(started, beside)
    allowed = all(answer.allowed for answer in answers)
    verdict = Verdict("domain_create", allowed, (), answers, 0)
    _answer(explain(verdict, subject=started), as_json)


@policy.command()
@click.option("--to", "form", required=True, type=click.Choice(["toml", "xml"]), help="The form.")
@click.argument("file")
def convert(form: str, file: str) -> None:
    """Write a policy in its other form to the output."""
    from skerry.policy.acm_toml import write_acm_toml
    from skerry.policy.load import load_acm
    from skerry.policy.shype_write import write_shype

    model = load_acm(file)
    text = write_acm_toml(model) if form == "toml" else write_shype(model)
    click.echo(text.encode("utf-8"), nl=False)


@policy.command()
@click.option("--policy", "policies", multiple=True, metavar="FILE", help="A file instead.")
@_JSON
def show(policies: tuple[str, ...], as_json: bool) -> None:
    """Show digest, generation, modules and labels of the policy in force, or of files."""
    if policies:
        from skerry.policy.load import load_stack, module_info

        stack = load_stack(policies)
        found: dict[str, Any] = {
            "digest": stack.digest,
            "generation": None,
            "modules": [module_info(module) for module in stack.modules],
        }
    else:
        from skerry.cli.common import ask
        from skerry.wire.control import PolicyShow

        found = ask(PolicyShow())
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"digest: {found['digest']}")
    if found["generation"] is not None:
        click.echo(f"generation: {found['generation']}")
    for shown in found["modules"]:
        click.echo(f"module: {shown['module']}  digest: {shown['digest']}")
        for label in shown["labels"]:
            mark = "  (operator)" if label == shown["operator"] else ""
            click.echo(f"  {label}{mark}")
        for label in shown["resources"]:
            click.echo(f"  resource:{label}")


def _answer(explanation: Explanation, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(explanation.as_dict()))
    if not explanation.allowed:
        click.echo(explanation.text(), err=True)
        sys.exit(DENIED)
    if not as_json:
        click.echo(explanation.text())


def _decide_one(
    stack: Stack, subject: str, target: str, tclass: str, permissions: tuple[str, ...]
) -> Explanation:
    from skerry.label import make_label
    from skerry.xsm.classes import CLASSES
    from skerry.xsm.explain import explain_decision
    from skerry.xsm.request import Request

    known = CLASSES.get(tclass)
    if known is None:
        raise _input_error("argument", 0, f"no class {tclass!r}; known: {', '.join(CLASSES)}")
    unknown = sorted(set(permissions) - known)
    if unknown:
        shown = ", ".join(sorted(known))
        raise _input_error("argument", 0, f"class {tclass} has no {unknown[0]!r}; it has {shown}")
    asked = tuple(sorted(set(permissions or known)))
    labels = make_label(subject, stack.names), make_label(target, stack.names)
    return explain_decision(stack.decide(Request(*labels, tclass, asked), 0))


def _decide_batch(stack: Stack, file: str) -> None:
    try:
        source = click.open_file(file, encoding="utf-8", errors="strict")
    except OSError as error:
        raise _input_error(file, 0, f"cannot be read: {error.strerror}") from None
    with source as lines:
        try:
            for answer in _batch(stack, file, iter(lambda: lines.readline(MAX_BATCH_LINE), "")):
                click.echo(answer)
        except UnicodeDecodeError:
            raise _input_error(file, 0, "not UTF-8") from None


def _batch(stack: Stack, file: str, untrusted_lines: Iterable[str]) -> Iterator[str]:
    from skerry.label import make_label
    from skerry.xsm.classes import CLASSES
    from skerry.xsm.request import Request

    for number, untrusted_line in enumerate(untrusted_lines, 1):
        if len(untrusted_line) >= MAX_BATCH_LINE:
            raise _input_error(file, number, f"line longer than {MAX_BATCH_LINE} characters")
        fields = untrusted_line.split()
        if not fields:
            continue
        if len(fields) != 3:
            raise _input_error(file, number, "a line is SUBJECT TARGET CLASS")
        subject, target, tclass = fields
        if tclass not in CLASSES:
            raise _input_error(file, number, f"no class {tclass!r}")
        labels = make_label(subject, stack.names), make_label(target, stack.names)
        asked = tuple(sorted(CLASSES[tclass]))
        decision = stack.decide(Request(*labels, tclass, asked), 0)
        granted = set(asked).intersection(*(answer.granted for answer in decision.answers))
        yield json.dumps(
            {
                "subject": subject,
                "target": target,
                "class": tclass,
                "allowed": sorted(granted),
                "auditallow": [],
                "dontaudit": [],
            }
        )


def _split_labels(text: str, modules: tuple[str, ...]) -> list[str]:
    """Split `a,b` into labels, or `acm=a,flask=b;acm=c,flask=d` where labels have parts."""
    if not text:
        return []
    parts = any(f"{module}=" in text for module in modules)
    return [label.strip() for label in text.split(";" if parts else ",") if label.strip()]


def _refuse_booleans(booleans: tuple[str, ...], file: str) -> None:
    for boolean in booleans:
        name, equals, value = boolean.partition("=")
        if not name or not equals or value not in ("0", "1"):
            raise click.BadParameter(f"{boolean!r} is not NAME=0 or NAME=1")
    if booleans:
        raise _input_error(file, 0, "this policy has no booleans")


def _input_error(file: str, line: int, message: str) -> InputError:
    from skerry.errors import InputError, Problem

    return InputError([Problem(file, line, message)])

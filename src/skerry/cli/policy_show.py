"""`skerry policy check`, `show` and `convert`: what stands in policies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from skerry.cli.common import counted, json_option
from skerry.wire.escape import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from skerry.errors import Problem
    from skerry.xsm.module import SecurityModule


@click.command()
@click.argument("file")
@json_option
def check(file: str, as_json: bool) -> None:
    """Check a policy file alone: errors (exit 2) and warnings, with file and line.

    What it asserts is proven: [[assert]] tables in a policy in TOML, or in FILE.assert beside any
    policy. An assertion that does not hold is refused with the path (exit 3).
    """
    from skerry.node.assertions import count, policy_violations, refused
    from skerry.policy.load import module_info
    from skerry.policy.source import read_policy

    policy = read_policy([file])
    (module,) = policy.stack.modules
    warnings, asserted = _warnings(module), count(policy)
    broken = policy_violations(policy)
    if broken:
        raise refused(broken)
    if as_json:
        shown = [{"file": w.file, "line": w.line, "message": w.message} for w in warnings]
        found = {**module_info(module), "assertions": asserted, "warnings": shown}
        click.echo(json.dumps(found))
        return
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    proven = f", {counted(asserted, 'assertion')} proven" if asserted else ""
    click.echo(f"{file}: sound, {_size(module)}{proven}, {counted(len(warnings), 'warning')}")


def _warnings(module: SecurityModule) -> list[Problem]:
    from skerry.policy.lint import find_flask_warnings, find_warnings
    from skerry.xsm.acm.module import AcmModule
    from skerry.xsm.flask.module import FlaskModule

    if isinstance(module, AcmModule):
        return find_warnings(module.policy)
    return find_flask_warnings(module) if isinstance(module, FlaskModule) else []


def _size(module: SecurityModule) -> str:
    from skerry.policy.describe import summary
    from skerry.xsm.flask.module import FlaskModule

    if not isinstance(module, FlaskModule):
        return counted(len(module.labels()), "label")
    found = summary(module)
    counts = found["counts"]
    parts = [f"{counts['classes']} {'class' if counts['classes'] == 1 else 'classes'}"]
    parts += [counted(counts[name + "s"], name) for name in ("type", "boolean")]
    parts += [counted(counts["allow"], "allow rule")]
    levels = "with MLS" if found["mls"] else "no MLS"
    return f"target {found['target']}, version {found['version']}, {levels}, {', '.join(parts)}"


@click.command()
@click.option("--policy", "policies", multiple=True, metavar="FILE", help="A file instead.")
@json_option
def show(policies: tuple[str, ...], as_json: bool) -> None:
    """Show digest, generation, modules, labels and assertions of the policy in force, or of files.

    Of a FLASK policy: what `seinfo` prints, its booleans, and contexts for domains.
    """
    if policies:
        from skerry.policy.source import policy_info, read_policy

        found: dict[str, Any] = {"generation": None, **policy_info(read_policy(policies))}
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
        if "counts" in shown:
            _show_flask(shown)
        for label in shown["labels"]:
            mark = "  (operator)" if label == shown["operator"] else ""
            click.echo(f"  {label}{mark}")
        for label in shown["resources"]:
            click.echo(f"  resource:{label}")
        for asserted in shown["assertions"]:
            click.echo(f"  {escape(asserted)}")


def _show_flask(shown: Mapping[str, Any]) -> None:
    levels = "MLS enabled" if shown["mls"] else "no MLS"
    click.echo(f"  version: {shown['version']} ({levels})")
    click.echo(f"  target: {shown['target']}")
    click.echo(f"  unknown classes and permissions: {shown['handle_unknown']}")
    width = max(map(len, shown["counts"]))
    for name, count in shown["counts"].items():
        click.echo(f"  {name:<{width}}  {count:>7}")
    for name, state in shown["booleans"].items():
        click.echo(f"  bool {name} = {int(state)}")
    click.echo(f"  operator: {shown['operator']}")
    click.echo("  contexts for domains, as somebody may create them or relabel to them:")


@click.command()
@click.option("--to", "form", required=True, type=click.Choice(["toml", "xml"]), help="The form.")
@click.argument("file")
def convert(form: str, file: str) -> None:
    """Write an ACM policy in its other form to the output.

    XML can't hold what a policy in TOML asserts: that is written to the error output, for a file
    of its own.
    """
    from skerry.policy.acm_toml import write_acm_toml
    from skerry.policy.asserted import SUFFIX, assertions_of, write_assertions
    from skerry.policy.load import parse_acm, policy_bytes
    from skerry.policy.shype_write import write_shype

    content = policy_bytes(file)
    model = parse_acm(content, file)
    asserted = assertions_of(content, b"", file)
    tables = write_assertions(asserted) if asserted else ""
    text = write_acm_toml(model) + tables if form == "toml" else write_shype(model)
    click.echo(text.encode("utf-8"), nl=False)
    if tables and form == "xml":
        where = f"a file beside the XML, with its name and the ending {SUFFIX}"
        click.echo(f"warning: XML holds no assertions; put these into {where}:", err=True)
        click.echo(tables.encode("utf-8"), err=True)

"""The command `skerry`: finds the command's module, and turns errors into lines and exit codes.

Only the module of the command that was typed is imported; start-up time is paid by every call.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any, NoReturn

import click

from skerry.cli.lazy import LazyGroup
from skerry.errors import Denied, InputError, SkerryError

COMMANDS = {
    "check": "skerry.cli.system:check",
    "plan": "skerry.cli.system:plan",
    "up": "skerry.cli.up:up",
    "down": "skerry.cli.up:down",
    "restart": "skerry.cli.up:restart",
    "ps": "skerry.cli.show:ps",
    "channels": "skerry.cli.show:channels",
    "start": "skerry.cli.life:start",
    "stop": "skerry.cli.life:stop",
    "kill": "skerry.cli.life:kill",
    "pause": "skerry.cli.life:pause",
    "resume": "skerry.cli.life:resume",
    "relabel": "skerry.cli.life:relabel",
    "connect": "skerry.cli.life:connect",
    "cut": "skerry.cli.life:cut",
    "disk": "skerry.cli.disk:disk",
    "alarm": "skerry.cli.policy_live:alarm",
    "exec": "skerry.cli.guest:exec_",
    "console": "skerry.cli.guest:console",
    "policy": "skerry.cli.policy:policy",
    "flow": "skerry.cli.flow:flow",
    "audit": "skerry.cli.audit:audit",
    "why": "skerry.cli.audit:why",
    "image": "skerry.cli.image:image",
    "tpm": "skerry.cli.tpm:tpm",
}

SUMMARIES = {
    "check": "Check a system file and its policy; start nothing.",
    "plan": "Show what `up` would start, bind, cut and refuse, and why.",
    "up": "Start a system, or change the one that runs.",
    "down": "Stop everything that `up` started.",
    "restart": "Start the service anew; domains and channels go on.",
    "ps": "List the domains.",
    "channels": "List the channels.",
    "start": "Start a domain.",
    "stop": "Stop a domain cleanly.",
    "kill": "End a domain at once.",
    "pause": "Stop a domain's processors.",
    "resume": "Let a paused domain run on.",
    "relabel": "Give a running domain another label.",
    "connect": "Bind a channel between two domains.",
    "cut": "Revoke a channel.",
    "disk": "List, release and forget disks.",
    "alarm": "Apply an emergency set of the system file.",
    "exec": "Run a command in a domain.",
    "console": "Open a domain's serial console.",
    "policy": "Check, ask, convert and load policies.",
    "flow": "Show, explain and prove how information can flow.",
    "audit": "Read, export and verify the audit trail.",
    "why": "Explain a decision of the audit trail.",
    "image": "Build and list guest images.",
    "tpm": "State and verify what runs over a domain's TPM.",
}


@click.group(
    cls=LazyGroup,
    places=COMMANDS,
    summaries=SUMMARIES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="skerry", message="%(prog)s %(version)s")
def cli() -> None:
    """Run virtual machines that can exchange nothing but what a mandatory policy allows.

    Exit codes: 0 done or allowed, 1 failed, 2 wrong usage or a bad file, 3 denied by policy.
    """


def _explained(error: SkerryError) -> tuple[str, dict[str, Any]]:
    """Return an error as text for people and as an object for programs."""
    found: dict[str, Any] = {"error": error.message, "fix": error.fix}
    reply = getattr(error, "reply", None)
    if reply is not None and reply.code:  # the running node explained it
        found |= {"code": reply.code, "record": reply.record, "explanation": reply.explanation}
        return reply.text, found
    if isinstance(error, InputError):
        found["problems"] = [problem._asdict() for problem in error.problems]
        return "\n".join(f"error: {problem}" for problem in error.problems), found
    if isinstance(error, Denied):
        from skerry.control.failure import failed

        told = failed(error)  # in the words of a node
        found |= {"code": told.code, "record": told.record, "explanation": told.explanation}
        return told.text, found
    return f"error: {error}", found


def main() -> None:
    """Run the command line; the one place where an error becomes an exit code."""
    words = sys.argv[1:]
    # What stands after `--`, or after a domain in `exec`, is the guest's and no option of ours.
    own = words[: words.index("--")] if "--" in words else words
    as_json = "--json" in own and own[0] != "exec"
    try:
        _run(as_json)
    except BrokenPipeError:  # whoever read our output has gone, while an error was shown
        _drop_output()
        sys.exit(1)
    except OSError as error:
        with contextlib.suppress(OSError):
            click.echo(f"error: {error.strerror}{_of(error)}", err=True)
        _drop_output()
        sys.exit(1)


def _drop_output() -> None:
    """Send what the output still holds nowhere, if it can't be written: Python tries it again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _of(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _run(as_json: bool) -> NoReturn:
    try:
        code = cli(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except SkerryError as error:
        text, found = _explained(error)
        if as_json:
            click.echo(json.dumps(found))
        click.echo(text, err=True)
        sys.exit(error.exit_code)

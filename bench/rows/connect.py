"""`connect` from inside a guest: from the call to a port that can be opened."""

from __future__ import annotations

import statistics

from bench.measure import Row, say, single
from bench.place import run, system, up
from bench.program import INSTALL, program
from skerry.errors import SkerryError
from tests.support.cli import Cli

CALLS = 28
"""Streams of one measure: with each one's `close` fewer calls than a guest has at once."""

COMMANDS = 7

SERVICE = '[services.bench]\noffered-by = "bench"\n'

SILENT_S = 32
"""Seconds of silence after which a guest has all its calls again."""


def connect() -> Row:
    """Two-way streams that a guest asks for by name, one after another, by its kernel's clock.

    The guest's program calls through the guest's own pipe, as any program does (`call.c`).
    """
    text = system(["one", "other"], 'memory = "128M"') + SERVICE
    with up(text) as cli:
        run(cli, "exec", "other", "--", "skerry", "offer", "bench")
        install = ["exec", "--stdin", "one", "--", "sh", "-c", INSTALL.format("call")]
        cli.ok(*install, stdin=program("call"))
        _tell_of_the_command(cli)
        run(cli, "exec", "one", "--", "sleep", str(SILENT_S))
        said = run(cli, "exec", "one", "--", "/tmp/call", "bench", str(CALLS))
    spans = [_milliseconds(line) for line in said.splitlines()]
    if len(spans) != CALLS:
        raise SkerryError(f"the guest was not bound: {said!r}")
    answers, ports = zip(*spans, strict=True)
    middle = statistics.median(answers)
    say(f"between {min(ports):.3g} and {max(ports):.3g} ms, and {middle:.3g} to the answer alone")
    return single("connect-ms", "ms", list(ports), "< 20")


def _milliseconds(line: str) -> tuple[float, float]:
    """Read what the program says of one call: to the answer, and to the port."""
    answer, port = line.split()
    return int(answer) / 1e6, int(port) / 1e6


def _tell_of_the_command(cli: Cli) -> None:
    """Say what the guest's command takes, whose many processes are the most of it."""
    script = (
        "read -r began _ </proc/uptime; "
        f"for i in {' '.join('x' * COMMANDS)}; do skerry connect bench; done >/tmp/ports; "
        "read -r ended _ </proc/uptime; "
        "while read -r port; do skerry close $port; done </tmp/ports; echo $began $ended"
    )
    began, ended = map(float, run(cli, "exec", "one", "--", "sh", "-c", script).split())
    say(f"the command `skerry connect`: {1e3 * (ended - began) / COMMANDS:.3g} ms on average")

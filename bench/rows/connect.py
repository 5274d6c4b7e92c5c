"""`connect` from inside a guest: from the call to a port that can be opened."""

from __future__ import annotations

import re
import statistics

from bench.measure import Row, say, single
from bench.place import run, system, up
from skerry.errors import SkerryError
from tests.support.cli import Cli

CALLS = 28
"""Streams of one measure: with each one's `close` fewer calls than a guest has at once."""

COMMANDS = 7

SERVICE = '[services.bench]\noffered-by = "bench"\n'

SILENT_S = 32
"""Seconds of silence after which a guest has all its calls again."""

_NOW = "now() { { read -r a; read -r a; read -r a; } </proc/timer_list; echo $a; }"


def connect() -> Row:
    """Two-way streams that a guest asks for by name, one after another, by its kernel's clock.

    The guest's program is a shell that calls through the guest's own pipe, as any program does,
    and makes no process between the call and the opening of its port's device.
    """
    text = system(["one", "other"], 'memory = "128M"') + SERVICE
    with up(text) as cli:
        run(cli, "exec", "other", "--", "skerry", "offer", "bench")
        _tell_of_the_command(cli)
        run(cli, "exec", "one", "--", "sleep", str(SILENT_S))
        times = _spans(run(cli, "exec", "one", "--", "sh", "-c", _script()), CALLS)
    say(f"between {min(times):.3g} and {max(times):.3g} ms")
    return single("connect-ms", "ms", times, "< 20")


def _tell_of_the_command(cli: Cli) -> None:
    each = "now; port=$(skerry connect bench); now; skerry close $port"
    count = " ".join(map(str, range(COMMANDS)))
    said = run(cli, "exec", "one", "--", "sh", "-c", f"{_NOW}; for i in {count}; do {each}; done")
    middle = statistics.median(_spans(said, COMMANDS))
    say(f"the command `skerry connect` in the guest, with its processes: {middle:.3g} ms")


def _script() -> str:
    """Return the script that calls again and again, and says when each began and ended."""
    pipe = "/run/skerry/calls/bench"
    answer = (
        "end=; until [ $end ]; do read -r kind key text <&5; case $kind$key in "
        "isport) stream=$text ;; ischannel) number=$text ;; is*) ;; *) end=$kind ;; esac; done; "
        '[ $end = ok ] || { echo "$end $key"; exit 1; }'
    )
    device = (
        "found=; until [ $found ]; do for d in /sys/class/virtio-ports/*; do "
        'read -r shown 2>/dev/null <$d/name && [ "$shown" = "$stream" ] && found=/dev/${d##*/}; '
        "done; done; exec 4<>$found"
    )
    call = f"now; echo 1 bench connect bench 1<>/run/skerry/call; {answer}; {device}; now"
    close = f"exec 4>&-; echo 1 bench close $number 1<>/run/skerry/call; {answer}; sleep 0.3"
    loop = f"i=0; while [ $i -lt {CALLS} ]; do {call}; {close}; i=$((i+1)); done"
    return f"{_NOW}; mkfifo {pipe}; exec 5<>{pipe}; {loop}; rm {pipe}"


def _spans(said: str, count: int) -> list[float]:
    """Read what a script said. Raises `SkerryError` where it was refused."""
    times = [int(found) for found in re.findall(r"^now at (\d+) nsecs", said, re.MULTILINE)]
    if len(times) != 2 * count:
        raise SkerryError(f"the guest was not bound: {said!r}")
    return [(end - begin) / 1e6 for begin, end in zip(times[::2], times[1::2], strict=True)]

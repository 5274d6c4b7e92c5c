"""Why a QEMU ended, in words for people.

The rule it keeps: text of a guest or of QEMU is shown escaped and cut; what a guest printed only
chooses between sentences of ours.
"""

from __future__ import annotations

import signal

STATUS_UNKNOWN = 256
"""What a launcher reports where nobody can tell the exit status."""

MAX_WORDS = 200
"""Longest piece of QEMU's own words in a reason, in characters."""

_CAUSES = {
    "guest-shutdown": "the guest switched itself off",
    "guest-reset": "the guest asked for a reset, which ends a domain",
    "guest-panic": "the guest's kernel panicked",
    "host-signal": "QEMU was asked to end by a signal",
    "host-qmp-quit": "QEMU was told to quit",
}


def reason(
    status: int, *, killed: bool, cause: str, untrusted_stderr: bytes, untrusted_console: bytes
) -> str:
    """Say in one line why a QEMU ended; `cause` is that of its last SHUTDOWN event."""
    if status == 0:
        if cause == "guest-reset" and b"Kernel panic - not syncing" in untrusted_console:
            cause = "guest-panic"
        return _CAUSES.get(cause, "QEMU ended by itself")
    if killed:
        return "killed"
    if 128 < status < 128 + signal.NSIG:  # as bwrap reports the signal that ended its program
        status = 128 - status
    if status == STATUS_UNKNOWN:
        words = "QEMU ended, and nobody can say how"
    elif status < 0:
        words = f"QEMU was ended by {_signal_name(-status)}"
    else:
        words = f"QEMU ended with status {status}"
    last = last_line(untrusted_stderr)
    return f"{words}: {last}" if last else words


def last_line(untrusted_text: bytes) -> str:
    """Return the last line that says something, escaped and cut."""
    lines = [line for line in untrusted_text.splitlines() if line.strip()]
    if not lines:
        return ""
    text = lines[-1].decode(errors="replace").strip()[:MAX_WORDS]
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

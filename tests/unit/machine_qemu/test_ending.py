"""Why a QEMU ended, in words."""

from __future__ import annotations

import pytest

from skerry.machine.qemu.ending import MAX_WORDS, last_line, reason


def _reason(status: int, cause: str = "", stderr: bytes = b"", console: bytes = b"") -> str:
    return reason(
        status, killed=False, cause=cause, untrusted_stderr=stderr, untrusted_console=console
    )


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (_reason(0, "guest-shutdown"), "the guest switched itself off"),
        (_reason(0, "guest-reset"), "the guest asked for a reset, which ends a domain"),
        (
            _reason(0, "guest-reset", console=b"[1] Kernel panic - not syncing: VFS"),
            "the guest's kernel panicked",
        ),
        (_reason(-9), "QEMU was ended by SIGKILL"),
        (_reason(137), "QEMU was ended by SIGKILL"),
        (_reason(-9, stderr=b"a\nout of memory\n\n"), "QEMU was ended by SIGKILL: out of memory"),
        (_reason(1, stderr=b"bad option"), "QEMU ended with status 1: bad option"),
        (_reason(256), "QEMU ended, and nobody can say how"),
        (_reason(0, "made up"), "QEMU ended by itself"),
    ],
)
def test_reason(got: str, words: str) -> None:
    """Each way to end has its sentence."""
    assert got == words


def test_words_of_others_are_escaped_and_cut() -> None:
    """No control character of a hostile QEMU reaches a terminal, and no long text either."""
    assert last_line(b"\x1b[2J\x9b\xff boo") == "\\x1b[2J\ufffd\ufffd boo"
    assert len(last_line(b"x" * 10_000)) == MAX_WORDS


def test_killed_by_us() -> None:
    """A machine that we killed says so, not that a signal came."""
    words = reason(-9, killed=True, cause="", untrusted_stderr=b"", untrusted_console=b"")
    assert words == "killed"

"""The error tree: one root, leaves by meaning, and everything that fails in deciding is a denial.

The rule this module keeps (law 4, *fail secure*): an error raised while a policy is read, a
question is decided, an answer is recorded or a channel is made is a `Denied` **by type**, so code
that catches denials cannot let one of them through as an allow.

Each error says what went wrong in one line and, in `fix`, what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class SkerryError(Exception):
    """Root of all errors that Skerry raises itself. Exit code 1 of the command line."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}" if self.fix else self.message


class Problem(NamedTuple):
    """One mistake in a file that a user wrote; `line` counts from 1, 0 where there is none."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.message}"


class InputError(SkerryError):
    """A file or an argument is wrong: the user's to mend. Holds every problem found, in order."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)


class Denied(SkerryError):
    """An operation was refused. The operation had no effect. Exit code 3.

    `code` is the stable name of the refusal (`STE-NO-SHARED-TYPE`); `record` the number of the
    audit record that holds it, 0 until it is recorded.
    """

    exit_code = 3
    code = "DENIED"

    def __init__(self, message: str, *, fix: str = "", code: str = "", record: int = 0) -> None:
        super().__init__(message, fix=fix)
        self.code = code or type(self).code
        self.record = record


class PolicyError(InputError, Denied):
    """A policy file is damaged or inconsistent: every decision that needs it is a denial."""

    exit_code = 2
    code = "POLICY-INVALID"

    def __init__(self, problems: Sequence[Problem]) -> None:
        InputError.__init__(self, problems)
        self.code = type(self).code
        self.record = 0


class UnknownLabel(Denied):
    """A label that the policy in force does not define: never guessed, never `unlabeled`."""

    code = "LABEL-UNKNOWN"


class StaleGeneration(Denied):
    """The policy changed between the decision and its effect; asking again is safe."""

    code = "GENERATION-STALE"


class AuditUnavailable(Denied):
    """The audit trail cannot be written, so nothing may be allowed. Taking away still works."""

    code = "AUDIT-UNAVAILABLE"


class DeciderUnavailable(Denied):
    """Nobody can decide now (module crash, manager dead): new allows are refused."""

    code = "DECIDER-UNAVAILABLE"


class LimitReached(Denied):
    """A named limit is reached; the message names it. Nothing was made."""

    code = "LIMIT-REACHED"


class TransportError(Denied):
    """A channel could not be made safely, so it was not made."""

    code = "TRANSPORT-FAILED"


class LayerMissing(Denied):
    """A layer of the jail is missing or does not hold and the system file does not accept that."""

    code = "LAYER-MISSING"


class StateError(SkerryError):
    """A call in the wrong state; the message names the state and those in which it works."""


class NotFound(SkerryError):
    """No domain, channel, image or record of that name."""


class MachineError(SkerryError):
    """The machine underneath (QEMU, simulator) failed; its own words are in the message."""


class SupervisorError(SkerryError):
    """The supervisor refused or is gone; what it held is stopped."""


class WireError(SkerryError):
    """A message from a peer was malformed, too long or too slow; the connection is closed."""

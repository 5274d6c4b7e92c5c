"""An error as the message that a client gets, with a denial's explanation in it."""

from __future__ import annotations

from skerry.errors import Denied, InputError, SkerryError
from skerry.wire.control import Failed
from skerry.xsm.explain import Refused, explain_error


def failed(error: SkerryError) -> Failed:
    """Return the reply for an error: its line, what to do, its exit code and its explanation."""
    # A file that is wrong is its author's to mend, though it denies by type.
    if not isinstance(error, Denied) or isinstance(error, InputError):
        return Failed(error.message, error.fix, error.exit_code)
    explanation = explain_error(error)
    text = explanation.text()
    if isinstance(error, Refused) and error.fix:
        text += f"\n  try:        {error.fix}"
    return Failed(
        error.message,
        error.fix,
        error.exit_code,
        error.code,
        error.record,
        explanation.as_dict(),
        text,
    )

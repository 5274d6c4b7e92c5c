"""What can be wrong with a jail. The package stands alone, so its errors do too."""

from __future__ import annotations


class JailError(Exception):
    """A jail cannot be made; `fix` says what to do about it."""

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(f"{message}; {fix}" if fix else message)
        self.message = message
        self.fix = fix


class LayerOff(JailError):
    """A layer of the jail is missing or was to be left out and nobody accepted that by name."""


class IdentitiesUsed(JailError):
    """Every identity of the range was given away; none is used twice while the node lives."""

"""One field at a time, for whichever tests want it: booting four machines takes its time."""

from __future__ import annotations

from tests.hostile.field import Field, Watch
from tests.hostile.observer.outcome import Verdict


class Fields:
    """The field that was asked for last, and its observer."""

    def __init__(self) -> None:
        self._field: Field | None = None
        self._watch: Watch | None = None

    def on(self, board: str) -> Field:
        """Return the field with an attacker on this board; one on another board is closed."""
        if self._field is None or self._field.board != board:
            self.close()
            self._field = Field(board)
        return self._field

    def there(self) -> Field:
        """Return the field that was asked for last; the usual one if there is none."""
        return self._field or self.on("pc")

    def watch(self) -> Watch:
        """Return the field's observer, a new one if the last has ended."""
        assert self._field is not None
        if self._watch is None:
            self._watch = Watch(self._field.scene())
        return self._watch

    def end(self, earlier: Verdict | None = None) -> Verdict:
        """Have the observer look at everything, and end it; with what an `earlier` look found."""
        watch, self._watch = self.watch(), None
        last = watch.report("end")
        watch.close()
        if earlier is None:
            return last
        return Verdict(
            tuple(dict.fromkeys(earlier.findings + last.findings)),
            earlier.looks + last.looks,
            tuple(dict.fromkeys(earlier.blind + last.blind)),
        )

    def unwatch(self) -> None:
        """End the observer; there can be one at a time."""
        if self._watch is not None:
            self._watch.close()
        self._watch = None

    def close(self) -> None:
        """End what runs."""
        self.unwatch()
        if self._field is not None:
            self._field.close()
        self._field = None

"""A refusal that carries the verdict, so that whoever shows it can explain it."""

from __future__ import annotations

from skerry.errors import Denied
from skerry.xsm.explain import explain
from skerry.xsm.request import Verdict


class Refused(Denied):
    """The security modules said no. `verdict` holds every answer, `record` the audit record."""

    def __init__(self, verdict: Verdict, record: int) -> None:
        self.verdict = verdict
        explanation = explain(verdict, record)
        super().__init__(explanation.sentence, code=explanation.code, record=record)

"""The labels that a node's domains have now, and what is asserted of them.

The rules this module keeps: what the system's file asserts is proven of the labels in force, also
where operators gave others than the file's. So a relabel takes effect only in the very state for
which it was proven; and as a domain begins with the file's label again, its start is proven too
where that was not proven of the labels that there are then. Taking away proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from skerry.errors import Denied, StaleGeneration
from skerry.label import Label
from skerry.monitor.domain import ALIVE, State
from skerry.monitor.mediate import MAX_TRIES
from skerry.monitor.monitor import Monitor, Relabelled
from skerry.node.analyses import analysed
from skerry.node.assertions import AnalysisFailed
from skerry.node.proving import prove_labels
from skerry.node.setup import Setup, Writers
from skerry.xsm.explain import Refused

Still = Callable[[], object]
"""Called in the step in which a label is given; raises if that may not be any more."""


class Relabel(Protocol):
    """Relabels a domain, unless what it calls in that step raises."""

    async def __call__(self, operator: Label, name: str, label: Label, still: Still) -> Relabelled:
        """Return what was done."""


class LiveLabels:
    """The labels of a running system."""

    def __init__(
        self, monitor: Monitor, setup: Callable[[], Setup], writers: Callable[[Setup], Writers]
    ) -> None:
        """`writers` returns who has written the resources of a setup."""
        self._monitor = monitor
        self._setup = setup
        self._writers = writers
        self._proven: tuple[Setup, Mapping[str, Label], Writers] | None = None

    def now(self) -> Setup:
        """Return the setup in force, with the labels that domains have; the file's where they do
        not run."""
        setup = self._setup()
        labels = {**setup.labels, **self._live(setup)}
        return setup if labels == setup.labels else msgspec.structs.replace(setup, labels=labels)

    def are(self, proven: Setup) -> bool:
        """Tell whether what runs has the labels of a setup. What has ended since changes nothing:
        its next start is proven."""
        return all(proven.labels[name] == label for name, label in self._live(proven).items())

    async def relabel(
        self, operator: Label, name: str, label: Label, relabel: Relabel
    ) -> Relabelled:
        """Relabel a domain if what is asserted then holds; otherwise nothing is changed.

        Raises what `relabel` does; on record `Refused` with the path, and `AnalysisFailed`.
        """
        for _ in range(MAX_TRIES):
            setup = self._setup()
            written = self._writers(setup)
            proven = await self._prove_relabel(operator, name, label)

            def is_proven(
                setup: Setup = setup, written: Writers = written, proven: Setup | None = proven
            ) -> bool:
                same = self._setup() is setup and self._writers(setup) == written
                return same and proven is not None and self._only(proven, name)

            def still(is_proven: Callable[[], bool] = is_proven) -> None:
                if not is_proven():
                    raise StaleGeneration("the system changed meanwhile", fix="try again")

            try:
                return await relabel(operator, name, label, still)
            except StaleGeneration:
                if is_proven():  # it is not for what was proven
                    raise
        raise StaleGeneration(f"what {name} is relabelled beside kept changing", fix="try again")

    def proven(self, setup: Setup, labels: Mapping[str, Label]) -> None:
        """Take it that what a setup in force asserts was proven of these labels, and of who has
        written by now."""
        self._proven = setup, labels, self._writers(setup)

    async def require_start(self, operator: Label, name: str, label: Label) -> None:
        """Prove what is asserted before a domain begins with the file's label, unless that was
        proven of just these labels. Raises as `relabel` does."""
        setup, labels = self._setup(), self.now().labels
        known, written = self._proven, self._writers(setup)
        if known is not None and known[0] is setup and known[1:] == (labels, written):
            return
        if await self._may("domain_create", {"operator": operator, "domain": label}):
            now = msgspec.structs.replace(setup, labels=labels)
            await self._prove("domain_create", name, now)
            self._proven = setup, labels, written

    async def _prove_relabel(self, operator: Label, name: str, label: Label) -> Setup | None:
        """Return the setup that was proven; None where the monitor refuses it anyway."""
        domain = self._monitor.domains.get(name)
        if domain is None or domain.state not in ALIVE:
            return None
        parties = {"operator": operator, "domain": domain.label, "new": label}
        if not await self._may("domain_relabel", parties):
            return None
        now = self.now()
        if name in now.system.domains:
            now = msgspec.structs.replace(now, labels={**now.labels, name: label})
            await self._prove("domain_relabel", name, now)
        return now

    async def _prove(self, hook: str, name: str, setup: Setup) -> None:
        if not setup.system.asserts:
            return  # a policy's own are of its labels, whoever has them
        try:
            known = msgspec.structs.replace(setup, written=self._writers(setup))
            await analysed("label", prove_labels, known, hook)
        except (Refused, AnalysisFailed) as error:
            self._monitor.mediator.failed(hook, error, domain=name)
            raise

    async def _may(self, hook: str, parties: Mapping[str, Label]) -> bool:
        """Tell whether it is allowed, so that nothing is proven for whom the policy does not let:
        he is refused on record where it is asked for."""
        try:
            return (await self._monitor.mediator.judge(hook, parties)).allowed
        except Denied:
            return False

    def _only(self, proven: Setup, name: str) -> bool:
        """Tell whether all that runs, but the domain that is relabelled, is as it was proven."""
        live = self._live(proven)
        return all(proven.labels[one] == live[one] for one in live if one != name)

    def _live(self, setup: Setup) -> dict[str, Label]:
        return {
            domain.name: domain.label
            for domain in self._monitor.domains.values()
            if domain.state is not State.ENDED and domain.name in setup.system.domains
        }

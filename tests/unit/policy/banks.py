"""Two banks and their broker, for tests of a policy manager in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from skerry.errors import Denied
from skerry.label import Label
from skerry.policy.source import Policy, Source, make_policy
from skerry.xsm.request import Verdict
from tests.unit.policy.samples import TOML

DATA = Path(__file__).parents[1] / "policydb/data"
ACM = Source("banks.toml", TOML.encode())
XEN = Source("xen.30", (DATA / "xen.30").read_bytes())
DUMMY = Source("dummy", b"")
BANKS = make_policy([ACM])
NARROWER = make_policy(
    [
        Source(
            "w.toml", TOML.replace('[labels.bank-a]\nste = ["bank-a"]', "[labels.bank-a]").encode()
        )
    ]
)
TEXTS = {
    "acm": ("dom0", "bank-a", "bank-b", "broker", "nobody"),
    "flask": (
        "system_u:system_r:dom0_t",
        "user_1:vm_r:guest_t",
        "user_2:vm_r:guest_t",
        "user_1:vm_r:child_t",
        "user_1:vm_r:nobody_t",
    ),
    "dummy": ("dom0", "a", "b", "c", "d"),
}


def label(name: str) -> Label:
    """Return an ACM label."""
    return Label((("acm", name),))


BROKER, BANK_A, BANK_B = label("broker"), label("bank-a"), label("bank-b")
TALK = {"source": BROKER, "sink": BANK_A}
PAUSE = {"operator": label("dom0"), "domain": BROKER}


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scene, which must not hang."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scene()

    asyncio.run(bounded())


def labels_of(policy: Policy) -> list[Label]:
    """Return labels for a stack, one that it does not know among them."""
    names = sorted(policy.stack.names)
    return [
        Label(tuple((name, TEXTS[name][n]) for name in names)) for n in range(len(TEXTS["acm"]))
    ]


async def told(asked: Coroutine[Any, Any, Verdict]) -> Verdict | tuple[str, str, str]:
    """Return a verdict, or what the denial says."""
    try:
        return await asked
    except Denied as error:
        return error.code, error.message, error.fix

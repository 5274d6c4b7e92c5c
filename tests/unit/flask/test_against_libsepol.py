"""Our decisions are libsepol's: real policies and random ones, in short form.

`./run oracle` asks at least 100,000 questions of each. A mismatch prints what repeats it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.oracle.worker import Task, What, total
from tests.support import policies
from tests.support.policies import Language, Target

REAL: dict[str, Callable[[], Path]] = {
    "xen.24": lambda: policies.xen(24),
    "xen.30": lambda: policies.xen(30),
    "xen-mls.30": policies.xen_mls,
    "selinux.33": policies.selinux,
}
KINDS: list[tuple[Target, Language]] = [
    ("selinux", "conf"),
    ("selinux", "cil"),
    ("xen", "conf"),
    ("xen", "cil"),
]


def random_tasks(what: What, count: int, broken: str = "", seeds: int = 12) -> list[Task]:
    """Return a task for each seed, target and language; a third have their booleans flipped."""
    return [
        Task(
            what=what,
            seed=seed,
            count=count,
            target=target,
            language=language,
            flip=seed % 3 == 0,
            broken=broken,
        )
        for target, language in KINDS
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("name", REAL)
def test_a_real_policy_decides_as_libsepol_does(name: str) -> None:
    """Allow, auditallow, dontaudit and the step that refused are the same."""
    path = str(REAL[name]())
    tally = total([Task("decisions", seed, 1_000, path, flip=seed == 0) for seed in range(3)])
    assert tally.mismatches == []
    assert tally.asked == 3_000
    assert tally.allowing > 1_500
    assert tally.constrained > 50


@pytest.mark.parametrize("name", REAL)
def test_a_real_policy_labels_and_reads_contexts_as_libsepol_does(name: str) -> None:
    """`member` and `change` give the same contexts; the same texts are contexts."""
    path = str(REAL[name]())
    labels = total([Task("relabelling", seed, 500, path) for seed in range(2)])
    texts = total([Task("contexts", 1, 1_500, path)])
    assert labels.mismatches == texts.mismatches == []
    assert labels.allowing > 500
    assert 300 < texts.allowing < texts.asked


def test_random_policies_decide_as_libsepol_does() -> None:
    """So it is with roles, levels, bounds, conditionals and constraints of any form."""
    tally = total(random_tasks("decisions", 200))
    assert tally.mismatches == []
    assert tally.allowing > 3_000
    assert tally.constrained > 2_000


def test_random_policies_label_and_read_contexts_as_libsepol_does() -> None:
    """`member`, `change`, validatetrans and the texts of contexts, over random policies."""
    labels = total(random_tasks("relabelling", 100))
    changes = total(random_tasks("changes", 100))
    texts = total(random_tasks("contexts", 100))
    assert labels.mismatches == changes.mismatches == texts.mismatches == []
    assert labels.allowing > 3_000
    assert changes.allowing > 1_000
    assert changes.constrained > 1_000
    assert 1_000 < texts.allowing < texts.asked - 1_000


def test_random_policies_behave_as_the_naive_model() -> None:
    """Bounds as Xen checks them, and labels as Linux and Xen derive them, named ones too."""
    tally = total(random_tasks("naive", 150))
    assert tally.mismatches == []
    # The control: Linux's bounds and Xen's differ, so one of them is not tested by the other.
    assert tally.constrained > 50


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("decisions", "constraints"),
        ("decisions", "conditionals"),
        ("decisions", "bounds"),
        ("decisions", "role allows"),
        ("decisions", "dontaudits"),
        ("decisions", "attributes"),
        ("relabelling", "type rules"),
        ("changes", "validatetrans"),
        ("naive", "bounds"),
        ("naive", "conditionals"),
        ("naive", "role transitions"),
        ("naive", "range transitions"),
    ],
)
def test_a_server_that_overlooks_a_part_is_found_out(what: What, broken: str) -> None:
    """The control of all above: each part of a policy is missed as soon as it is left out."""
    tally = total(random_tasks(what, 100, broken, seeds=6))
    assert tally.differing > 0
    assert tally.mismatches

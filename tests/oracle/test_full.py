"""The long form of the comparisons: over 100,000 questions of each policy, tallies printed.

`./run oracle` runs it. In the labels of new objects, libsepol answers for transitions too: the
call that its shared library hides is linked out of Debian's static one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.oracle.compare import Tally
from tests.oracle.sepol import whole_library
from tests.oracle.worker import Task, What, timed
from tests.support.policies import Language, Target
from tests.unit.flask.test_against_libsepol import KINDS, REAL

Report = Callable[[Sequence[Task], str], Tally]
RUNS, QUESTIONS = 12, 9_000
"""A third of the runs have their booleans set at random; each run has contexts of its own."""
SEEDS, FEW = 300, 100


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Carries out tasks and prints their tally at once."""

    def carry_out(tasks: Sequence[Task], name: str) -> Tally:
        tally, seen = timed(tasks, name)
        with capsys.disabled():
            print(f"\n  {seen}", end="")  # noqa: T201
        assert tally.mismatches == []
        return tally

    return carry_out


def random_tasks(what: What, target: Target, language: Language, library: str) -> list[Task]:
    """Return a task for each seed; the short form's seeds are not among them."""
    return [
        Task(what, seed, FEW, "", target, language, flip=seed % 3 == 0, library=library)
        for seed in range(1_000, 1_000 + SEEDS)
    ]


@pytest.mark.parametrize("name", REAL)
def test_decisions_of_a_real_policy(name: str, report: Report) -> None:
    """108,000 questions, most of granted and dontaudited pairs."""
    path = str(REAL[name]())
    tasks = [Task("decisions", n, QUESTIONS, path, flip=n % 3 == 0) for n in range(RUNS)]
    tally = report(tasks, f"decisions {name}")
    assert tally.asked >= 100_000
    assert tally.allowing > tally.asked // 2


@pytest.mark.parametrize("name", REAL)
def test_labels_and_contexts_of_a_real_policy(name: str, report: Report) -> None:
    """Transitions, `member` and `change`; and which texts are contexts."""
    path, library = str(REAL[name]()), whole_library()
    tasks = [
        Task("relabelling", n, QUESTIONS // 2, path, flip=n % 3 == 0, library=library)
        for n in range(RUNS)
    ]
    assert report(tasks, f"labels {name}").asked >= 100_000
    tasks = [Task("contexts", n, QUESTIONS, path) for n in range(RUNS)]
    assert report(tasks, f"contexts {name}").asked >= 100_000


@pytest.mark.parametrize(("target", "language"), KINDS)
@pytest.mark.parametrize("what", ["decisions", "relabelling", "changes", "contexts", "naive"])
def test_random_policies(what: What, target: Target, language: Language, report: Report) -> None:
    """300 policies of each kind, 100 questions each; all together over 100,000 of each sort."""
    tasks = random_tasks(what, target, language, whole_library())
    assert report(tasks, f"{what}, random {target} {language}").allowing > SEEDS

"""One node of simulated domains for each module of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cli import Cli
from tests.support.simulated import small_node


@pytest.fixture(scope="module")
def node() -> Iterator[Cli]:
    """The small system, running; a test leaves it as it found it."""
    with small_node() as cli:
        yield cli

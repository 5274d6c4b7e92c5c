"""What the hostile tests share: identities for jails, the field where guests attack, its table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.jail import identity
from tests.hostile import table
from tests.hostile.field import Field
from tests.hostile.fields import Fields


@pytest.fixture(scope="module")
def pool() -> Iterator[identity.IdentityPool]:
    """Identities of this user."""
    found = identity.open_pool()
    assert found is not None, "these tests need subordinate ids (/etc/subuid) or root"
    yield found
    found.close()


@pytest.fixture(scope="session")
def fields() -> Iterator[Fields]:
    """Where guests attack; nothing of it runs until a test asks for it."""
    made = Fields()
    yield made
    made.close()


@pytest.fixture
def field(fields: Fields) -> Iterator[Field]:
    """The field on a board with slots, with an attacker that runs before and after."""
    made = fields.on("pc")
    fields.unwatch()
    with made.watched() as watch:
        if made.state() != "running":
            made.renew(watch)
    yield made
    with made.watched() as watch:
        if made.state() != "running":
            made.renew(watch)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the attacks came to; write it where `SKERRY_HOSTILE_PAGE` says."""
    if not table.rows:
        return
    terminalreporter.section("guests that attack")
    for line in table.lines(table.rows):
        terminalreporter.line(line)
    if page := os.environ.get(table.PAGE):
        table.write(Path(page), table.rows)
        terminalreporter.line(f"written: {page}")

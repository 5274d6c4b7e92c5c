"""What the tests of the jail share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from skerry.jail import identity


@pytest.fixture(scope="module")
def pool() -> Iterator[identity.IdentityPool]:
    """Identities of this user."""
    found = identity.open_pool()
    assert found is not None, "these tests need subordinate ids (/etc/subuid) or root"
    yield found
    found.close()

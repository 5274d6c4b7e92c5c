"""What a missing layer of the jail is answered with."""

from __future__ import annotations

import pytest

from skerry.jail.errors import LayerOff
from skerry.jail.probe.probes import LayerResult, require


def test_the_line_that_would_accept_a_missing_layer_is_written_out() -> None:
    """It keeps what the system file accepts already, and with it nothing is refused."""
    results = [LayerResult("seccomp", True), LayerResult("cgroup", False, "permission denied")]
    with pytest.raises(LayerOff, match=r"hold: cgroup \(permission denied\)") as refused:
        require(results, frozenset({"uid"}))
    assert '[jail] accept-missing = ["cgroup", "uid"]' in refused.value.fix
    require(results, frozenset({"cgroup", "uid"}))

"""What all tests share: how hypothesis runs.

The first draw of a text in a fresh checkout makes hypothesis's tables of characters, which takes
longer than its health check allows, and a busy machine makes any deadline a coin toss. Neither
says anything about the code under test.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("skerry", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("skerry")

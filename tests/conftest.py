"""What all tests share: how hypothesis runs, and that an interrupt reaches what they start.

The first draw of a text in a fresh checkout makes hypothesis's tables of characters, which takes
longer than its health check allows, and a busy machine makes any deadline a coin toss. Neither
says anything about the code under test.
"""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("skerry", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("skerry")

# A shell that runs the tests in the background has them, and all they start, ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

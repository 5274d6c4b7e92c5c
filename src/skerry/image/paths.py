"""Where images lie unless the caller says so: a place that the domains' uids can traverse.

Never under a home or a checkout: those are often closed to other uids, and a jail's uid must be
able to open the kernel.
"""

from __future__ import annotations

import os
from pathlib import Path


def image_cache() -> Path:
    """Return the default cache: `$SKERRY_HOME/images`, else a system place by who asks."""
    home = os.environ.get("SKERRY_HOME")
    if home:
        return Path(home).absolute() / "images"
    if os.geteuid() == 0:
        return Path("/var/lib/skerry/images")
    return Path(f"/var/tmp/skerry-{os.geteuid()}/images")

"""The one device that a jail may have: KVM, as a node of the jail's own.

The rules: a node belongs to the jail's uid alone and is gone when the jail has ended; a host that
does not let root make one, or an ordinary user, gives the host's own node if the jail's uid may
open it, and else there is none.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

from skerry.jail.identity import Identity
from skerry.jail.leftover import left_behind, own_name

KVM = Path("/dev/kvm")


def open_to(directory: Path, name: str, identity: Identity) -> Path | None:
    """Return where a jail with this identity finds KVM, None where it can have none.

    `directory` is one that the jails' uids can traverse; give the path to `remove` in the end.
    """
    try:
        host = KVM.stat()
    except OSError:
        return None
    if not stat.S_ISCHR(host.st_mode):
        return None
    if os.getuid() == 0 and identity.uid != 0:
        made = _node(directory / own_name(name), host.st_rdev, identity)
        if made is not None:
            return made
    if identity.uid == os.getuid():
        return KVM if os.access(KVM, os.R_OK | os.W_OK) else None
    return KVM if host.st_mode & 0o006 == 0o006 else None


def _node(path: Path, device: int, identity: Identity) -> Path | None:
    """Make a private node; None where devices can't be made, or not be used on this mount."""
    if os.statvfs(path.parent).f_flag & os.ST_NODEV:
        return None
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, device)
        os.chown(path, identity.uid, identity.gid)
    except OSError:
        remove(path)
        return None
    return path


def remove(path: Path | None) -> None:
    """Remove a private node; the host's own stays. Idempotent."""
    if path is not None and path != KVM:
        path.unlink(missing_ok=True)


def sweep(directory: Path, ours: Collection[int] = ()) -> None:
    """Remove the nodes that killed makers left; `ours`: see `leftover.left_behind`."""
    for path in left_behind(directory, ours):
        with contextlib.suppress(OSError):  # another's, or gone meanwhile
            path.unlink()

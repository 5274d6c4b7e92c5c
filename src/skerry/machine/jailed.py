"""Starts a helper's process in its jail, through the supervisor.

Generic: whatever runs in a jail (a domain's QEMU, a helper) is started by this and nothing else.

The rule: what a jail lacks is a denial (`LayerMissing`), and a supervisor that is gone is an
error; in both cases nothing was started.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from skerry.errors import LayerMissing, SupervisorError
from skerry.jail.confinement import Confinement, command
from skerry.jail.errors import JailError
from skerry.jail.filter import open_filter
from skerry.supervisor.client import Process, SpawnFailed, SupervisorClient, SupervisorGone

INTERPRETER = 3
"""Words of a jail's command before its first stage: the interpreter and its options."""

ACL_USER = 0x02
"""The tag of one user's entry in an access list."""


def _require_reachable(jail: Confinement) -> None:
    """Refuse what lies in a directory that the jail's uid can't enter: bwrap runs as that uid.

    Raises `JailError`.
    """
    if "filesystem" in jail.without or jail.identity.uid == os.getuid():
        return
    binds = jail.binds + jail.writable + jail.devices
    shown = [jail.root, *(host for host, _ in binds)]
    for folder in sorted({parent for path in shown for parent in Path(path).resolve().parents}):
        try:
            found = folder.stat()
        except OSError as error:
            raise JailError(f"the jail needs {folder}: {error.strerror}") from error
        uid = jail.identity.uid
        if not (found.st_mode & stat.S_IXOTH or found.st_uid == uid or _is_let_in(folder, uid)):
            raise JailError(
                f"the jail's uid {jail.identity.uid} cannot enter {folder}",
                fix="let others enter it (chmod o+x), or set SKERRY_HOME to another directory",
            )


def _is_let_in(folder: Path, uid: int) -> bool:
    """Say whether a directory's access list lets this uid enter (Linux' `posix_acl_xattr.h`)."""
    try:
        listed = os.getxattr(folder, "system.posix_acl_access")
    except OSError:
        return False
    entries = struct.iter_unpack("<HHI", listed[4:])
    return any(tag == ACL_USER and who == uid and perm & 1 for tag, perm, who in entries)


class JailedLauncher:
    """Starts programs in one confinement. Implements `machine.qemu.launch.Launcher`."""

    def __init__(
        self,
        supervisor: SupervisorClient,
        confinement: Confinement,
        first: Sequence[str] = (),
    ) -> None:
        """`first` is a script, with its arguments, that runs before the jail's first stage."""
        self._supervisor = supervisor
        self._confinement = confinement
        self._first = tuple(first)

    def path(self, file: Path) -> str:
        """Return where the jail shows a file of the host. Raises `SupervisorError` if nowhere."""
        for host, inside in self._confinement.binds:
            if host == str(file):
                return inside
        raise SupervisorError(f"the jail does not show {file}")

    async def launch(
        self,
        name: str,
        argv: Sequence[str],
        fds: Mapping[int, int],
        *,
        keep: Mapping[str, int] | None = None,
    ) -> Process:
        """Start a program in the jail with exactly these descriptors (its number to ours).

        What is in `keep` (name to ours) the supervisor keeps, if and only if it was started.
        Raises `LayerMissing`, `SupervisorError`; then nothing was started.
        """
        try:
            program = open_filter(self._confinement.profile)
        except NotImplementedError as error:
            raise LayerMissing(str(error)) from None
        number = max(fds, default=2) + 1
        try:
            _require_reachable(self._confinement)
            words = command(self._confinement, argv, number)
            words[INTERPRETER:INTERPRETER] = self._first
            return await self._supervisor.spawn(name, words, {**fds, number: program}, keep=keep)
        except JailError as error:
            raise LayerMissing(error.message, fix=error.fix) from None
        except (SpawnFailed, SupervisorGone) as error:
            raise SupervisorError(f"{name} was not started: {error}") from None
        finally:
            os.close(program)

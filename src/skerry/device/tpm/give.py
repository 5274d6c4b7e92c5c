"""Gives a file of an ordinary user to one of that user's subordinate ids. Run as a program.

The rule: it enters a user namespace in which just the two are mapped, so it can give away what is
the user's own, to that one id, and nothing else. Standard library only; it starts in no time.

swtpm sets the mode of the state that it loads, which only a file's owner may.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000
GIVE_S = 10.0
"""How long this may take, in seconds. It takes some 50 ms."""


def give(path: Path, uid: int, gid: int) -> None:
    """Give a file away. Raises `OSError` if this user may not."""
    argv = [sys.executable, "-I", "-S", __file__, str(path), str(uid), str(gid)]
    try:
        subprocess.run(argv, check=True, capture_output=True, env={}, timeout=GIVE_S)
    except subprocess.SubprocessError as error:
        raise PermissionError(1, f"its file cannot be given to uid {uid}: {error}") from None


def main(path: str, uid: str, gid: str) -> None:
    """Enter the namespace, whose maps a child outside of it writes, and give the file away."""
    target, own = os.getpid(), {"newuidmap": os.getuid(), "newgidmap": os.getgid()}
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(tell)
        os.read(told, 1)
        for tool, other in (("newuidmap", uid), ("newgidmap", gid)):
            words = [tool, str(target), *("0", str(own[tool]), "1"), *("1", other, "1")]
            if os.spawnv(os.P_WAIT, f"/usr/bin/{tool}", words):
                os._exit(1)
        os._exit(0)
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "no new user namespace")
    os.write(tell, b"x")
    if os.waitpid(child, 0)[1]:
        raise OSError(1, "newuidmap or newgidmap failed")
    os.chown(path, 1, 1, follow_symlinks=False)


if __name__ == "__main__":
    main(*sys.argv[1:])

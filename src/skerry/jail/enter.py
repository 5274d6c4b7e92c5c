"""First stage inside a jailed process: give up what bwrap cannot take away, then become bwrap.

The rules: everything is given up before bwrap runs; a step that fails ends the process, except for
Landlock where the kernel lacks it (the probes report that). A script of its own with few imports,
because it runs at each start.

    enter.py IDENTITY CGROUPS OFF -- COMMAND ARG...

IDENTITY is `own`, `root:UID:GID` (drop to a host uid) or `sub:UID:GID` (to a subordinate one);
CGROUPS are directories to join, OFF the layers left out, each list separated by colons.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SYS_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING = 250, 1
SYS_LANDLOCK_CREATE, SYS_LANDLOCK_RESTRICT, LANDLOCK_VERSION = 444, 446, 1
LANDLOCK_NET, LANDLOCK_SCOPED = 0b11, 0b11
DESCRIPTORS = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def check(result: int, what: str) -> int:
    """Return the result of a C call; end the process with `what` failed if it is negative."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def die_with(parent: int) -> None:
    """Be killed when the parent ends; a change of identity had switched that off."""
    check(_libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0), "pdeathsig")
    if os.getppid() != parent:
        os._exit(125)


def join(directories: str) -> None:
    """Move this process into cgroups."""
    for directory in filter(None, directories.split(":")):
        fd = os.open(f"{directory}/cgroup.procs", os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)


def map_ids(uid: int, gid: int) -> None:
    """Enter a user namespace that holds one subordinate uid and gid, under their host numbers."""
    told, tell = os.pipe()
    target = os.getpid()
    helper = os.fork()
    if helper == 0:  # newuidmap works from outside the namespace only
        os.close(tell)
        os.read(told, 1)
        for tool, number in (("newuidmap", uid), ("newgidmap", gid)):
            words = [tool, str(target), str(number), str(number), "1"]
            if os.spawnv(os.P_WAIT, f"/usr/bin/{tool}", words):
                os._exit(1)
        os._exit(0)
    os.close(told)
    check(_libc.unshare(CLONE_NEWUSER), "new user namespace")
    os.write(tell, b"x")
    os.close(tell)
    if os.waitpid(helper, 0)[1]:
        raise OSError("newuidmap or newgidmap failed (package uidmap; /etc/subuid, /etc/subgid)")


def become(identity: str) -> None:
    """Drop to the identity of the jail."""
    kind, _, ids = identity.partition(":")
    if kind == "own":
        return
    uid, gid = map(int, ids.split(":"))
    if kind == "sub":
        map_ids(uid, gid)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def restrict() -> None:
    """Landlock: no TCP, no abstract sockets and no signals outside, as far as the kernel can."""
    version = _libc.syscall(SYS_LANDLOCK_CREATE, None, 0, LANDLOCK_VERSION)
    if version < 4:
        return
    # Files are bwrap's part: handling them here would forbid it to mount.
    size, scoped = (24, LANDLOCK_SCOPED) if version >= 6 else (16, 0)
    attributes = (ctypes.c_uint64 * 3)(0, LANDLOCK_NET, scoped)
    fd = check(_libc.syscall(SYS_LANDLOCK_CREATE, attributes, size, 0), "landlock ruleset")
    check(_libc.syscall(SYS_LANDLOCK_RESTRICT, fd, 0), "landlock")
    os.close(fd)


def main(arguments: list[str]) -> None:
    """Give up and execute."""
    identity, cgroups, off_words, dashes, *command = arguments
    off = off_words.split(":")
    if dashes != "--" or not command:
        raise ValueError("usage: enter.py IDENTITY CGROUPS OFF -- COMMAND ARG...")
    parent = os.getppid()
    if "core-dumps" not in off:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    join(cgroups)
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        # Who wakes preempts nobody: two machines that talk would cut each other's turns short.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    become(identity)
    die_with(parent)
    if "keyring" not in off:
        check(_libc.syscall(SYS_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None), "session keyring")
    check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if "landlock" not in off:
        restrict()
    os.execve(command[0], command, {})


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"skerry jail: {error}\n")
        sys.exit(125)

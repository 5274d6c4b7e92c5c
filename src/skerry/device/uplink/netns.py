"""First stage of passt's jail: a network namespace that leads nowhere, in which all comes to us.

The rules it keeps: the namespace has a loopback and nothing else, so nothing in it can reach the
host or a network; every IPv4 address is local in it, so that a connection to any of them ends at
the sockets made here; those go to the node before passt runs, and passt gets none of them.

A script of its own with few imports (`python -I -S`); it becomes the jail's usual first stage:

    netns.py CONTROL ADDRESS PORTS ENTER IDENTITY CGROUPS OFF -- COMMAND ARG...

CONTROL is the descriptor of a Unix stream that takes the sockets, beside a `+`, or a `-` and the
reason why there are none; ADDRESS is the resolver's in the namespace, PORTS those of TCP that are
listened on, separated by commas; ENTER is `jail/enter.py`, whose arguments follow. The sockets are
sent in the order of `gate`'s descriptors: the resolver's, one that sees every attempt to connect,
one that sees every datagram, then a listener for each port.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SO_ATTACH_FILTER = 26
RTM_NEWROUTE, NLM_REQUEST_ACK_CREATE = 24, 0x1 | 0x4 | 0x400
LANDLOCK_WITH_TCP, LANDLOCK_BIND_TCP = 4, 1
LOW = 32768
DNS_PORT = 53
MAX_REASON = 200
"""Bytes of the reason why there is no namespace; the rest is cut off."""

FIXED = 3
"""The sockets that are made for every uplink, whatever its ports."""

BACKLOG = 64
"""Connections of one port that wait to be accepted; the guest tries again for one more."""

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Enter new namespaces. Raises OSError."""
    if _libc.unshare(flags) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)}")


def make_all_local() -> None:
    """Bring the loopback up and make every IPv4 address one of this namespace's own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some:
        fcntl.ioctl(some, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    # rtmsg: IPv4, all destinations, table local, scope host, type local; RTA_OIF: the loopback.
    route = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 255, 3, 254, 2, 0) + struct.pack("=HHI", 8, 4, 1)
    head = struct.pack("=IHHII", 16 + len(route), RTM_NEWROUTE, NLM_REQUEST_ACK_CREATE, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(head + route)
        answer = netlink.recv(4096)
    (error,) = struct.unpack_from("=i", answer, 16)
    if error:
        raise OSError(-error, f"a route in the namespace: {os.strerror(-error)}")


def forbid_listening(enter: ModuleType) -> None:
    """Let nobody bind a TCP socket from now on, as far as the kernel can; UDP to low ports neither.

    passt binds to where it is to connect, to see whether anybody listens on an address of its own,
    and if it can, gives up without trying: the gate would not see what was asked. Where Landlock is
    older than its version 4, that is so for ports from `LOW` on.
    """
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w") as file:  # noqa: PTH123 no pathlib here
        file.write(str(LOW))
    create, restrict = enter.SYS_LANDLOCK_CREATE, enter.SYS_LANDLOCK_RESTRICT
    enter.check(_libc.prctl(enter.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if _libc.syscall(create, None, 0, enter.LANDLOCK_VERSION) < LANDLOCK_WITH_TCP:
        return
    attributes = (ctypes.c_uint64 * 2)(0, LANDLOCK_BIND_TCP)
    rules = enter.check(_libc.syscall(create, attributes, 16, 0), "landlock ruleset")
    enter.check(_libc.syscall(restrict, rules, 0), "landlock")
    os.close(rules)


def make_sockets(address: str, ports: list[int]) -> list[socket.socket]:
    """Make what everything in the namespace comes to; see above for the order."""
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind((address, DNS_PORT))
    made = [resolver, _watcher(socket.IPPROTO_TCP, _SYN), _watcher(socket.IPPROTO_UDP, _ALL)]
    for port in ports:
        made.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made[-1].bind(("0.0.0.0", port))
        made[-1].listen(BACKLOG)
    for sock in made:
        sock.setblocking(False)
    return made


# Of a packet the first 28 bytes (both heads, without options): its addresses and ports.
_ALL = struct.pack("=HBBI", 0x06, 0, 0, 28)
# TCP's flags, behind an IPv4 head of any length: SYN and not ACK.
_SYN = b"".join(
    (
        struct.pack("=HBBI", 0xB1, 0, 0, 0),  # X = 4 * (head length)
        struct.pack("=HBBI", 0x50, 0, 0, 13),  # A = byte at X + 13
        struct.pack("=HBBI", 0x54, 0, 0, 0x12),  # A &= SYN | ACK
        struct.pack("=HBBI", 0x15, 0, 1, 0x02),  # SYN alone?
        struct.pack("=HBBI", 0x06, 0, 0, 60),
        struct.pack("=HBBI", 0x06, 0, 0, 0),
    )
)


def _watcher(protocol: int, program: bytes) -> socket.socket:
    """Make a raw socket that gets the beginning of what the program accepts."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
    code = ctypes.create_string_buffer(program, len(program))
    filled = struct.pack("HL", len(program) // 8, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filled)
    return sock


def _load(path: str) -> ModuleType:
    loader = SourceFileLoader("enter", path)
    spec = spec_from_loader("enter", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def _own_namespace(map_ids: Callable[[int, int], None], identity: str) -> str:
    """Enter a network namespace; return the identity that remains to be taken.

    Root's namespace belongs to root, whom passt is not; an ordinary user's to a user namespace
    that holds the identity alone, and its capabilities go with the change of identity or in bwrap.
    """
    kind, _, ids = identity.partition(":")
    if kind == "sub":
        uid, gid = map(int, ids.split(":"))
        map_ids(uid, gid)
        unshare(CLONE_NEWNET)
        return f"root:{ids}"
    if kind == "own" and os.geteuid() != 0:
        uid, gid = os.geteuid(), os.getegid()
        unshare(CLONE_NEWUSER | CLONE_NEWNET)
        for file, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            descriptor = os.open(f"/proc/self/{file}", os.O_WRONLY)
            os.write(descriptor, text.encode())
            os.close(descriptor)
        return identity
    unshare(CLONE_NEWNET)
    return identity


def main(arguments: list[str]) -> None:
    """Make the namespace, hand its sockets over, and go on as the jail's first stage."""
    control, address, ports, path, identity, groups, *rest = arguments
    enter = _load(path)
    with socket.socket(fileno=int(control)) as node:
        try:
            enter.join(groups)  # while the host's identity may still do so
            identity = _own_namespace(enter.map_ids, identity)
            make_all_local()
            made = make_sockets(address, [int(port) for port in ports.split(",")])
            socket.send_fds(node, [b"+"], [sock.fileno() for sock in made])
        except OSError as error:
            node.send(f"-{error}".encode()[:MAX_REASON])
            raise
    for sock in made:
        sock.close()
    forbid_listening(enter)
    enter.main([identity, "", *rest])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"skerry uplink: {error}\n")
        sys.exit(125)

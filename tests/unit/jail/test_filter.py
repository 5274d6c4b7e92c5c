"""The assembler and the profiles, judged by a small interpreter of the same instructions."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from skerry.jail import filter
from skerry.jail.bpf import ALLOW, AUDIT_ARCH_X86_64, ERRNO, KILL_PROCESS, Arg, Call, assemble

EPERM = ERRNO | errno.EPERM


def run(program: bytes, number: int, *arguments: int, arch: int = AUDIT_ARCH_X86_64) -> int:
    """Return what the filter answers."""
    words = [a % (1 << 64) for a in arguments]
    data = struct.pack("<IIQ6Q", number, arch, 0, *words, *[0] * (6 - len(words)))
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, k)[0]
            case 0x54:
                accumulator &= k
            case 0x15:
                at += yes if accumulator == k else no
            case 0x35:
                at += yes if accumulator >= k else no
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


def test_rules_are_alternatives_of_conditions() -> None:
    """A call passes when every condition of one rule holds."""
    calls = [Call(1), Call(2, ((Arg(0, 1), Arg(1, 2)), (Arg(2, 4, 4),)))]
    program = assemble(calls, {9: errno.ENOSYS}, errno.EPERM)
    assert run(program, 1) == ALLOW
    assert run(program, 2, 1, 2) == run(program, 2, 0, 0, 6) == ALLOW
    assert run(program, 2, 1, 3) == run(program, 2, 2, 1) == run(program, 3) == EPERM
    assert run(program, 9) == ERRNO | errno.ENOSYS


def test_wide_conditions_see_the_high_half() -> None:
    """A pointer whose low half is zero is not NULL."""
    wide = assemble([Call(1, ((Arg(0, 0, (1 << 64) - 1, wide=True),),))], {}, errno.EPERM)
    assert run(wide, 1, 0) == ALLOW
    assert run(wide, 1, 1 << 32) == run(wide, 1, 1) == EPERM
    narrow = assemble([Call(1, ((Arg(0, 0),),))], {}, errno.EPERM)
    assert run(narrow, 1, 1 << 32) == ALLOW


def test_other_architectures_are_killed_and_x32_refused() -> None:
    """A number means another call elsewhere, so it is not looked at."""
    program = filter.program("qemu")
    assert run(program, 0) == ALLOW
    assert run(program, 0, arch=0x40000003) == KILL_PROCESS
    assert run(program, 0x40000000) == EPERM


@pytest.mark.parametrize("profile", sorted(filter.PROFILES))
def test_what_nobody_may(profile: str) -> None:
    """No profile allows a call of these families."""
    program = filter.program(profile)
    sockets = [41, 42, 43, 49, 50, 53, 288]
    processes = [57, 58, 62, 101, 129, 200, 272, 297, 308, 310, 311, 322, 424, 434, 438, 448]
    shared = [29, 30, 31, 64, 65, 66, 67, 68, 69, 70, 71, 73, 220, 240, 241, 248, 249, 250]
    watching = [253, 254, 294, 298, 300, 301, 321, 323, 425, 426, 427]
    files = [2, 82, 83, 84, 86, 87, 88, 90, 91, 92, 133, 155, 161, 165, 166, 304, 428, 429, 442]
    for number in (*sockets, *processes, *shared, *watching, *files):
        assert run(program, number, 1, 1) == EPERM, number
    assert run(program, filter.CLONE3) == ERRNO | errno.ENOSYS


def test_arguments_are_checked() -> None:
    """The same call passes with one argument and fails with another."""
    program = filter.program("qemu")
    threads = 0x3D0F00
    assert run(program, filter.CLONE, threads) == ALLOW
    for flags in (0, 17, threads | 0x10000000, threads | 0x20000000, threads | 0x1000, 0x4111):
        assert run(program, filter.CLONE, flags) == EPERM
    assert run(program, filter.FCNTL, 3, 4) == ALLOW
    for command in (5, 6, 7, 8, 10, 36, 37, 38, 1024, 1026):  # locks, owners, leases, watches
        assert run(program, filter.FCNTL, 3, command) == EPERM
    assert run(program, filter.SETSOCKOPT, 3, 1, 7) == ALLOW
    # SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD, SO_PASSRIGHTS
    for option in (16, 34, 76, 83):
        assert run(program, filter.SETSOCKOPT, 3, 1, option) == EPERM
    for option in (3, 4, 7, 8, 30, 38, 39):
        assert run(program, filter.GETSOCKOPT, 3, 1, option) == ALLOW
    # SO_PEERCRED, SO_PEERSEC, SO_PEERGROUPS, SO_PEERPIDFD; and another level
    for level, option in ((1, 17), (1, 31), (1, 59), (1, 77), (0, 3), (6, 3)):
        assert run(program, filter.GETSOCKOPT, 3, level, option) == EPERM
    assert run(program, filter.PRCTL, 15) == ALLOW
    for option in (1, 4, 8, 35, 0x59616D61):  # pdeathsig, dumpable, keepcaps, mm, ptracer
        assert run(program, filter.PRCTL, option) == EPERM
    assert run(program, filter.SENDTO, 3, 1, 1, 0, 0) == ALLOW
    assert run(program, filter.SENDTO, 3, 1, 1, 0, 1 << 40) == EPERM
    assert run(program, filter.SECCOMP, 1, 8) == EPERM
    assert run(program, filter.TGKILL, 1, 5, 6) == ALLOW
    assert run(program, filter.TGKILL, 2, 5, 6) == EPERM
    assert run(program, filter.PRLIMIT, 0, 4, 0) == ALLOW
    assert run(program, filter.PRLIMIT, 0, 4, 1 << 33) == EPERM


def test_kvm_is_a_profile_of_its_own() -> None:
    """KVM's requests pass only there; pushing characters into a terminal never."""
    create = 0xAE01
    assert run(filter.program("qemu-kvm"), filter.IOCTL, 3, create) == ALLOW
    for profile in filter.PROFILES:
        assert run(filter.program(profile), filter.IOCTL, 3, 0x5412) == EPERM  # TIOCSTI
        assert run(filter.program(profile), filter.IOCTL, 3, 0x5421) == ALLOW  # FIONBIO
    assert run(filter.program("qemu"), filter.IOCTL, 3, create) == EPERM


def test_too_long_a_program_is_refused() -> None:
    """Neither the kernel's limit nor a jump's is passed silently."""
    with pytest.raises(ValueError, match="kernel takes"):
        assemble([Call(n) for n in range(2100)], {}, 1)
    with pytest.raises(ValueError, match="too many rules"):
        assemble([Call(1, tuple((Arg(0, n),) for n in range(70)))], {}, 1)


def test_a_helper_reads_files_and_has_one_thread() -> None:
    """It opens nothing for writing, makes no thread, and can hide but not show itself."""
    program = filter.program("helper")
    openat = 257
    for flags in (0, os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW, os.O_PATH):
        assert run(program, openat, 0, 0, flags) == ALLOW
        assert run(filter.program("qemu"), openat, 0, 0, flags | os.O_RDWR) == ALLOW
    for more in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE, 3):
        assert run(program, openat, 0, 0, os.O_CLOEXEC | more) == EPERM
    assert run(program, filter.CLONE, 0x3D0F00) == EPERM
    assert run(program, filter.PRCTL, 4, 0) == ALLOW
    assert run(program, filter.PRCTL, 4, 1) == run(program, filter.PRCTL, 15) == EPERM

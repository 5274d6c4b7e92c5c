"""Where a node keeps its files.

Three places with three meanings: *state* (the trail, the history; the owner's alone), *share*
(jail roots and guest images; readable by the domains' uids, so it can't lie under a home), *run*
(the control socket; gone after `down`). `SKERRY_HOME` puts all three under one directory, which
lets several nodes run on one host; `SKERRY_SHARE` then names a share that they have in common.

The rule: a place whose name others can guess is used only if it is its user's own, and so is the
one that it lies in; who could rename it could put another in its place.
"""

from __future__ import annotations

import os
from pathlib import Path

from skerry.errors import SkerryError

MAX_SOCKET = 106
"""Longest path of a Unix socket, in bytes: the kernel's sun_path, less one for its making. A longer
one is an error."""

LOCK = "node.lock"
"""The file of the state on which a supervisor holds a lock while it lives."""

ROOT_HOME = Path("/var/lib/skerry")


def _home() -> Path | None:
    value = os.environ.get("SKERRY_HOME", "")
    return Path(value).absolute() if value else None


def state_dir() -> Path:
    """Return the directory of the trail and the history; mode 0700."""
    if home := _home():
        return home / "state"
    if os.getuid() == 0:
        return ROOT_HOME / "state"
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base else Path.home() / ".local/state") / "skerry"


def share_dir() -> Path:
    """Return the directory of jail roots and images; others can traverse it (mode 0755)."""
    if share := os.environ.get("SKERRY_SHARE", ""):
        return Path(share).absolute()
    if home := _home():
        return home / "share"
    return ROOT_HOME if os.getuid() == 0 else Path(f"/var/tmp/skerry-{os.getuid()}")


def run_dir() -> Path:
    """Return the directory of the control socket."""
    if home := _home():
        return home / "run"
    if os.getuid() == 0:
        return Path("/run/skerry")
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(base) / "skerry" if base else share_dir() / "run"


def image_cache() -> Path:
    """Return the directory of built guest images."""
    return share_dir() / "images"


def roots_dir() -> Path:
    """Return the directory of jail roots."""
    return share_dir() / "roots"


def devices_dir() -> Path:
    """Return the directory of the device nodes that are made for jails."""
    return share_dir() / "devices"


def kvm_answers() -> Path:
    """Return the file that remembers which guests run under KVM."""
    return devices_dir() / "kvm.json"


def audit_file() -> Path:
    """Return the audit trail's file."""
    return state_dir() / "audit.log"


def audit_head() -> Path:
    """Return the file of the trail's head as the node noted it last."""
    return state_dir() / "audit.head"


def audit_key() -> Path:
    """Return the key that signs the trail's checkpoints; its public half is `audit_public`."""
    return state_dir() / "audit.key"


def audit_public() -> Path:
    """Return the public half of the key that signs the trail's checkpoints."""
    return state_dir() / "audit.pub"


def journal_file() -> Path:
    """Return the journal: what a node that is started again goes on with."""
    return state_dir() / "journal.log"


def history_file() -> Path:
    """Return the file of what each label has touched (the Chinese Wall's history form)."""
    return state_dir() / "history.json"


def tpm_records() -> Path:
    """Return the directory of what is known of each TPM: whose it is, and its attestation key."""
    return state_dir() / "tpm"


def keys_dir() -> Path:
    """Return the directory of the keys of resources."""
    return state_dir() / "keys"


def tpm_states() -> Path:
    """Return the directory of the TPMs' encrypted states, each for one jail's uid alone.

    Jails reach it, so it can't lie in `state_dir`; it is this node's alone, also where the share is
    common to several.
    """
    return (_home() or share_dir()) / "tpm"


def statement_key() -> Path:
    """Return the key that signs statements about domains; its public half is beside it, `.pub`."""
    return state_dir() / "statement.key"


def written_file() -> Path:
    """Return the file of the labels that have written each disk and TPM."""
    return state_dir() / "written.json"


def templates_dir() -> Path:
    """Return the directory of the templates that domains are cloned from."""
    return state_dir() / "templates"


def control_socket() -> Path:
    """Return the control socket's path.

    Raises `SkerryError` if no socket can have it, or if another user owns the place of yours.
    """
    path = run_dir() / "control.sock"
    if not _home():
        for place in (share_dir(), run_dir()):
            if path.is_relative_to(place) and os.path.lexists(place):
                _require_own(place)
    if len(os.fsencode(path)) > MAX_SOCKET:
        raise SkerryError(
            f"{path} is too long for a socket: {len(os.fsencode(path))} bytes",
            fix=f"set SKERRY_HOME to a directory that leaves it under {MAX_SOCKET + 1}",
        )
    return path


def make_private(path: Path) -> Path:
    """Make a directory that only its owner may enter, and return it. Raises `SkerryError`."""
    return _make(path, 0o700)


def make_shared(path: Path) -> Path:
    """Make a directory that everyone may read but only its owner may change, and return it."""
    return _make(path, 0o755)


def _make(path: Path, mode: int) -> Path:
    share = share_dir()
    if share in path.parents and not os.environ.get("SKERRY_SHARE", ""):
        make_shared(share)
    try:
        for parent in reversed(path.parents):
            if not parent.exists():  # the umask must not close what lies on the way
                parent.mkdir(exist_ok=True)
                parent.chmod(0o755)
        path.mkdir(mode=mode, exist_ok=True)
        _require_own(path)
        path.chmod(mode)
    except OSError as error:
        raise SkerryError(
            f"cannot make the directory {path}: {error.strerror}",
            fix="mend that, or set SKERRY_HOME to a directory you may write",
        ) from None
    return path


def _require_own(path: Path) -> None:
    """Raise `SkerryError` if a directory is another user's or a symbolic link, `OSError`."""
    owner = path.lstat().st_uid
    if owner != os.getuid():
        raise SkerryError(
            f"{path} belongs to uid {owner}, not to you",
            fix="remove it, or set SKERRY_HOME to another directory",
        )
    if path.is_symlink():
        raise SkerryError(f"{path} is a symbolic link", fix="replace it by a directory")

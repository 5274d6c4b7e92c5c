"""What the user wants, as frozen data: the meaning of a `system.toml`.

The rule: a `System` is complete and consistent (every name it uses exists, every number is within
its bounds). Labels are kept as written; only the policy can say whether they exist, and
`System.line` gives the line for that message. Lines are apart from the parts, so two equal
domains from two versions of a file are equal.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from skerry.system.toml_lines import Path, nearest_line

RawLabel = str | Mapping[str, str]
"""A label as written: one text for every module, or a text for each; `make_label` reads it."""

ChannelKind = Literal["stream", "link", "memory"]
ResourceKind = Literal["disk", "uplink", "switch", "tpm"]
Kind = Literal["stream", "link", "memory", "disk", "uplink", "switch", "tpm"]
Format = Literal["raw", "qcow2"]
Overflow = Literal["block", "drop"]
Board = Literal["auto", "microvm", "q35", "pc"]
Accel = Literal["auto", "tcg", "kvm"]
Boot = Literal["kernel", "bios", "uefi"]
MachineKind = Literal["qemu", "simulator"]
Home = Literal["process", "domain"]

DUMMY_POLICY = "dummy"
"""The word that stands for the module without a file in `policy`."""

MAX_DOMAINS = 256
"""Domains of a system where `[limits]` does not say; one more is refused."""

MAX_CHANNELS = 4096
"""Live channels of a system where `[limits]` does not say; one more is refused."""

MAX_DOMAIN_CHANNELS = 64
"""Channels and uses of one domain where its `channels` does not say; one more is refused, and not
recorded as a decision, because none is taken."""

MANAGER_DOMAIN, AUDIT_DOMAIN = "policy-manager", "audit"
"""The names of the node's own domains, and of their images; a file's domain can't have them."""

MANAGER_MEMORY, AUDIT_MEMORY = 512 << 20, 256 << 20
"""Bytes of memory of the node's own domains: the manager's holds several policies at once, the
replica's the newest part of the trail."""

AUDIT_ROTATE = 64 << 20
"""Bytes at which a segment of the audit trail is closed where `[audit]` does not say."""

AUDIT_KEEP = 16
"""Closed segments that are kept where `[audit]` does not say; the oldest beyond it are removed."""

JAIL_LAYERS = (
    "uid",
    "user-namespace",
    "filesystem",
    "network",
    "pid",
    "ipc",
    "seccomp",
    "keyring",
    "landlock",
    "cgroup",
    "core-dumps",
    "no-new-privs",
    "descriptors",
    "swap",
)
"""The layers whose absence a system file may accept by name: the jail's, and swap that encrypts."""


class DomainSpec(msgspec.Struct, frozen=True):
    """One `[domains.NAME]`; `memory` in bytes.

    `boot`: what starts it, the kernel of its `image`, or a firmware that reads the first disk of
    its `uses`; then `image` is empty. `cpu`: hundredths of a core that all of its machine may use,
    0 for no limit; `channels`: most channels and uses. `console`: the console's own label, empty
    for none. `template`: it begins from a copy of a guest that has booted.
    """

    name: str
    label: RawLabel
    image: str = "minimal"
    memory: int = 192 << 20
    cpus: int = 1
    board: Board = "auto"
    accel: Accel = "auto"
    machine: MachineKind = "qemu"
    autostart: bool = True
    boot: Boot = "kernel"
    cpu: int = 0
    channels: int = MAX_DOMAIN_CHANNELS
    console: RawLabel = ""
    template: bool = False
    slots: bool = False
    """Whether something of the file needs a board with slots: a disk, a network, a memory."""
    tpm: bool = False
    """Whether it uses a TPM, which it has from its start on or not at all."""


class ChannelSpec(msgspec.Struct, frozen=True):
    """One `[[channels]]`: `source` and `sink` are domains, `name` the port in both guests.

    Or one of a domain's `uses`: then the sink is a resource, the kind and name are its, and
    `one_way` says that it is only read. `size` in bytes, for a memory.
    """

    kind: Kind
    source: str
    sink: str
    name: str
    one_way: bool = False
    overflow: Overflow = "block"
    size: int = 0


class ResourceSpec(msgspec.Struct, frozen=True):
    """One `[resources.NAME]`: what domains get from their host, under a label of its own.

    A disk: `file` (absolute), `format`, `size` in bytes for one that is made (0: it must be
    there), `encrypted`, `discard`: what is written is thrown away with the use, `shared`: others
    may use it beside one that writes. An uplink: `allow`, destinations as `NAME-OR-ADDRESS:PORT`,
    or `served_by`, a domain; `resolvers`, the name servers as `ADDRESS:PORT`, none for the host's.
    `rate`: bytes a second of a disk or an uplink, 0 for no limit.
    """

    name: str
    kind: ResourceKind
    label: RawLabel
    file: str = ""
    format: Format = "raw"
    size: int = 0
    encrypted: bool = False
    discard: bool = False
    shared: bool = False
    allow: tuple[str, ...] = ()
    served_by: str = ""
    resolvers: tuple[str, ...] = ()
    rate: int = 0


class ServiceSpec(msgspec.Struct, frozen=True):
    """One `[services.NAME]`: what guests may ask to be bound to by name.

    Only a domain with the label `offered_by` may serve it. `public`: who is refused it is told so,
    also where he may not see who serves it.
    """

    name: str
    offered_by: RawLabel
    public: bool = False


LABEL = "label:"
"""How the source of an assertion begins that is a label, whoever has it or had it."""


class Assertion(msgspec.Struct, frozen=True):
    """One `[[assert]]`: nothing flows from `source` to `sink` but through `except_`.

    Each is as it was written: names, labels and patterns, set apart by commas; a source behind
    `LABEL` is a label: that of domains, and of all that wrote under it. With `history`, walls with
    history close whole paths.
    """

    source: str
    sink: str
    except_: tuple[str, ...] = ()
    history: bool = False


class Alarm(msgspec.Struct, frozen=True):
    """One `[alarm.NAME]`: the domains that it ends and the booleans that it sets."""

    stop: tuple[str, ...] = ()
    booleans: Mapping[str, bool] = {}


class Limits(msgspec.Struct, frozen=True):
    """`[limits]`: how many there may be at once."""

    domains: int = MAX_DOMAINS
    channels: int = MAX_CHANNELS


class Audit(msgspec.Struct, frozen=True):
    """`[audit]`: a segment is closed at `rotate` bytes, and `keep` closed ones are kept.

    `home`: whether a replica of the trail lives in a domain of its own.
    """

    rotate: int = AUDIT_ROTATE
    keep: int = AUDIT_KEEP
    home: Home = "process"


class System(msgspec.Struct, frozen=True):
    """A whole system file.

    `path` is the file itself; `policy` holds absolute paths or `DUMMY_POLICY`; `operators` maps a
    uid to its label; `accept_missing` names the layers of the jail that may be absent; every policy
    must be signed by `policy_key`, the absolute path of a public key, where there is one, and every
    image by `image_key`, whose 32 bytes are `image_signer` once the file was read. `manager`: where
    the policy manager lives. `share_templates`: domains of different labels may begin from one
    template.
    """

    path: pathlib.Path
    name: str
    policy: tuple[str, ...]
    domains: Mapping[str, DomainSpec]
    channels: tuple[ChannelSpec, ...] = ()
    resources: Mapping[str, ResourceSpec] = {}
    names: Mapping[str, ServiceSpec] = {}
    asserts: tuple[Assertion, ...] = ()
    accept_missing: tuple[str, ...] = ()
    operators: Mapping[int, RawLabel] = {}
    operator_keys: Mapping[int, str] = {}
    limits: Limits = Limits()
    audit: Audit = Audit()
    alarms: Mapping[str, Alarm] = {}
    policy_key: str = ""
    image_key: str = ""
    image_signer: bytes = b""
    share_templates: bool = False
    manager: Home = "process"
    lines: Mapping[Path, int] = {}

    @property
    def services(self) -> dict[str, DomainSpec]:
        """The node's own domains, by name; their labels are the core's, and in no policy."""
        homes = (
            (MANAGER_DOMAIN, self.manager, MANAGER_MEMORY),
            (AUDIT_DOMAIN, self.audit.home, AUDIT_MEMORY),
        )
        return {
            name: DomainSpec(name, f"core.{name}", image=name, memory=memory)
            for name, home, memory in homes
            if home == "domain"
        }

    @property
    def machines(self) -> tuple[DomainSpec, ...]:
        """All domains that get a machine: the file's and the node's own."""
        return (*self.domains.values(), *self.services.values())

    @property
    def images(self) -> frozenset[str]:
        """The images that domains boot from."""
        found = self.machines
        return frozenset(d.image for d in found if d.machine == "qemu" and d.boot == "kernel")

    def line(self, path: Path) -> int:
        """Return the line of a part of the file: `("domains", "x", "label")`; 0 if it has none."""
        return nearest_line(self.lines, path)

    def operator_line(self, uid: int) -> int:
        """Return the line of an operator's label."""
        return self.line(("operators", self.operator_keys.get(uid, "")))

"""From files to what a node runs with: the system, its policy, its labels, all checked at once.

`check`, `plan` and `up` share this, so that what `check` accepts is what `up` starts; a node that
runs gets the same files as bytes from whoever typed `up`, and checks them in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from skerry.errors import Denied, InputError, PolicyError, Problem, UnknownLabel
from skerry.label import Label
from skerry.policy.asserted import assertions_of, read_assertions
from skerry.policy.fitness import check_fitness
from skerry.policy.load import policy_bytes
from skerry.policy.signature import public_key, read_key_file, read_signature, require_signed
from skerry.policy.source import NewBooleans, Policy, Source, changed, make_policy, read_policy
from skerry.system.files import read_text
from skerry.system.load import MAX_FILE, load_system, parse_system
from skerry.system.model import DUMMY_POLICY, RawLabel, System
from skerry.wire.system_files import KeyFile, PolicyFile, SystemFiles
from skerry.xsm.stack import Stack

Writers = Mapping[str, frozenset[Label]]
"""The labels that are known to have written each resource."""


class Setup(msgspec.Struct, frozen=True):
    """A system whose policy is loaded and whose labels the policy defines.

    `labels` maps each domain and resource to its label, `operators` each uid to its label; `owner`
    is the label of the user who runs this; `consoles` the label of each console that has one of its
    own, by its domain, `names` the label that may serve each service; `warnings` say what the
    policy lacks for domains. Where there is a `policy_key` (32 bytes, Ed25519), it has signed every
    policy. `written` are the labels that are known to have written each resource, where it is asked
    what may flow: a setup in force has none, for they grow.
    """

    system: System
    policy: Policy
    labels: Mapping[str, Label]
    operators: Mapping[int, Label]
    owner: Label
    warnings: tuple[Problem, ...] = ()
    policy_key: bytes = b""
    consoles: Mapping[str, Label] = {}
    names: Mapping[str, Label] = {}
    written: Writers = {}

    @property
    def stack(self) -> Stack:
        """The modules that decide."""
        return self.policy.stack


def load_setup(path: Path) -> Setup:
    """Read a system file and its policy.

    Raises `InputError` with every problem of the file or, if it has none, of its policy.
    """
    system = load_system(path)
    try:
        policy = read_policy(system.policy)
        key, system = _read_key(system.policy_key), with_image_key(system)
        signatures = {file: read_signature(file) for file in _files_of(system)} if key else {}
        return _setup(system, policy, key, signatures)
    except PolicyError as error:  # nothing runs yet: a wrong file, and no denial
        raise InputError(error.problems) from None


def read_files(path: Path) -> tuple[System, SystemFiles]:
    """Read a system file and the files that it names, to be sent to a node that runs.

    Raises `InputError`; whether the policies are any, and the labels theirs, the node says.
    """
    text = read_text(path, MAX_FILE)
    system = parse_system(text, path.absolute())
    try:
        key, image_key = _read_key(system.policy_key), _read_key(system.image_key)
        policies = tuple(
            PolicyFile(file, policy_bytes(file), read_signature(file), read_assertions(file))
            for file in _files_of(system)
        )
    except PolicyError as error:
        raise InputError(error.problems) from None
    return system, SystemFiles(str(path.absolute()), text, policies, key, image_key)


def make_setup(untrusted: SystemFiles) -> Setup:
    """Make of a system's files as bytes what `load_setup` makes of them on disk.

    Raises `InputError` as that does, `PolicyError` where it is a policy that is wrong, and if the
    files are not those that the system names.
    """
    path = Path(untrusted.path)
    if len(untrusted.text.encode()) > MAX_FILE:
        raise InputError([Problem(str(path), 0, f"longer than {MAX_FILE} bytes")])
    system = parse_system(untrusted.text, path)
    given = {policy.file: policy for policy in untrusted.policies}
    lacking = [file for file in _files_of(system) if file not in given]
    keys = [(system.policy_key, untrusted.key), (system.image_key, untrusted.image_key)]
    if lacking or any(bool(file) is not bool(key) for file, key in keys):
        lacks = ", ".join(lacking) or "the key"
        raise InputError([Problem(str(path), 0, f"it came without {lacks}, which it names")])
    system = _signed_images(system, untrusted.image_key)
    sources = [
        Source(file, b"") if file == DUMMY_POLICY else _source(given[file])
        for file in system.policy
    ]
    policy = make_policy(sources)
    signatures = {file: policy.signature for file, policy in given.items()}
    return _setup(system, policy, untrusted.key, signatures)


def _source(given: PolicyFile) -> Source:
    """Return the source of a policy that came as bytes. Raises `PolicyError`."""
    asserted = assertions_of(given.content, given.assertions, given.file)
    return Source(given.file, given.content, assertions=asserted)


def _files_of(system: System) -> list[str]:
    return [file for file in system.policy if file != DUMMY_POLICY]


def _read_key(file: str) -> KeyFile | None:
    return KeyFile(read_key_file(file), read_signature(file)) if file else None


def with_image_key(system: System) -> System:
    """Return a system with the key that signs its images, if it names one, as bytes.

    Raises `PolicyError` if that is none.
    """
    return _signed_images(system, _read_key(system.image_key))


def _signed_images(system: System, key: KeyFile | None) -> System:
    if key is None:
        return system
    raw = public_key(key.content, system.image_key)
    return msgspec.structs.replace(system, image_signer=raw)


def _setup(
    system: System, policy: Policy, key: KeyFile | None, signatures: Mapping[str, bytes]
) -> Setup:
    """Check a system and its policy against each other. Raises `InputError`, `PolicyError`."""
    warnings = check_fitness(policy.stack)
    required = _signed(system, policy, key, signatures) if key else b""
    stack = policy.stack
    reader = _Labels(system, stack)
    labels = {
        name: reader.read(domain.label, system.line(("domains", name, "label")))
        for name, domain in system.domains.items()
    }
    labels |= {
        name: reader.read(resource.label, system.line(("resources", name, "label")), "resource")
        for name, resource in system.resources.items()
    }
    consoles = {
        name: reader.read(domain.console, system.line(("domains", name, "console")), "resource")
        for name, domain in system.domains.items()
        if domain.console
    }
    services = {
        name: reader.read(service.offered_by, system.line(("services", name, "offered-by")))
        for name, service in system.names.items()
    }
    operators = {
        uid: reader.read(label, system.operator_line(uid))
        for uid, label in system.operators.items()
    }
    problems = reader.problems + _alarm_problems(system, policy)
    if problems:
        raise InputError(sorted(problems, key=lambda problem: problem.line))
    # The owner of the node may always call it; without a line of its own it has domain 0's label.
    if os.getuid() not in operators:
        operators[os.getuid()] = _owner(stack, system)
    owner = operators[os.getuid()]
    warnings += _unserved(system, labels, services)
    return Setup(
        system, policy, labels, operators, owner, tuple(warnings), required, consoles, services
    )


def _unserved(
    system: System, labels: Mapping[str, Label], services: Mapping[str, Label]
) -> list[Problem]:
    """Say of which services no domain of the file has the label that may serve it."""
    found = {labels[name] for name in system.domains}
    return [
        Problem(
            str(system.path),
            system.line(("services", name, "offered-by")),
            f"no domain has the label {label}, so none can offer the service {name}",
        )
        for name, label in services.items()
        if label not in found
    ]


def _signed(system: System, policy: Policy, key: KeyFile, signatures: Mapping[str, bytes]) -> bytes:
    """Return the raw key that signed every policy. Raises `PolicyError` if it did not."""
    raw = public_key(key.content, system.policy_key)
    if not _files_of(system):
        message = "policy-key needs a policy file: the module dummy has nothing to sign"
        line = system.line(("policy-key",))
        raise PolicyError([Problem(str(system.path), line, message)])
    problems: list[Problem] = []
    for source in policy.sources:
        if source.file == DUMMY_POLICY:
            continue
        try:
            require_signed(raw, source.content, signatures[source.file], source.file)
        except PolicyError as error:
            problems += error.problems
    if problems:
        raise PolicyError(problems)
    return raw


def carry(stack: Stack, label: Label, before: Stack) -> Label | None:
    """Return what a label is called under the next policy, None if that has no such label."""
    try:
        return stack.carry(label, before)
    except Denied:
        return None


def carried(setup: Setup, policy: Policy) -> Setup:
    """Return the setup under another policy; a label that it lacks stays, and is refused."""

    def new(label: Label) -> Label:
        return carry(policy.stack, label, setup.stack) or label

    return msgspec.structs.replace(
        setup,
        policy=policy,
        labels={name: new(label) for name, label in setup.labels.items()},
        operators={uid: new(label) for uid, label in setup.operators.items()},
        owner=new(setup.owner),
        consoles={name: new(label) for name, label in setup.consoles.items()},
        names={name: new(label) for name, label in setup.names.items()},
        written={name: frozenset(map(new, labels)) for name, labels in setup.written.items()},
    )


def _alarm_problems(system: System, policy: Policy) -> list[Problem]:
    """Return the alarms whose booleans the policy lacks: too late to learn in an emergency."""
    problems = []
    for name, alarm in system.alarms.items():
        try:
            if alarm.booleans:
                changed(policy, NewBooleans(alarm.booleans))
        except InputError as error:
            line = system.line(("alarm", name, "booleans"))
            problems.append(Problem(str(system.path), line, error.problems[0].message))
    return problems


def _owner(stack: Stack, system: System) -> Label:
    try:
        label = stack.operator_label()
        for module in stack.modules:
            module.check_label(label.of(module.name), "domain")
        return label
    except UnknownLabel as error:
        message = f"{error.message}; name your own label in [operators]"
        raise InputError([Problem(str(system.path), 0, message)]) from None


class _Labels:
    """Reads the labels of a file and collects what is wrong with them."""

    def __init__(self, system: System, stack: Stack) -> None:
        self.problems: list[Problem] = []
        self._file = str(system.path)
        self._stack = stack

    def read(self, value: RawLabel, line: int, tclass: str = "domain") -> Label:
        try:
            return self._stack.label(value, tclass)
        except UnknownLabel as error:
            message = str(error)
            if isinstance(value, str) and len(self._stack.names) > 1 and "=" not in value:
                parts = ", ".join(f'{name} = "..."' for name in self._stack.names)
                message += f"; with several modules, write label = {{ {parts} }}"
            self.problems.append(Problem(self._file, line, message))
            return Label(())

"""What a policy in force is made from, so that it can be made again: after a restart, elsewhere.

The rule this module keeps: the same sources make the same stack, to the digest; a change of policy
is data, and is applied to what is in force in one place. Assertions that stay in force are about
the same labels as before, or the change is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from skerry.errors import PolicyError, Problem, UnknownLabel
from skerry.policy.asserted import SUFFIX, Assertions, assertions_of, read_assertions
from skerry.policy.load import DUMMY, module_info, parse_policy, policy_bytes
from skerry.policy.update import check_update, with_booleans, with_policy
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.dummy import DummyModule
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack

_SHOWN = 8
"""Most names that a message lists."""


class Source(msgspec.Struct, frozen=True):
    """One module's policy: the file's name, its bytes (compiled), and the booleans set since.

    The module without a policy has the name `dummy` and no bytes. `assertions` is None where the
    policy came without any.
    """

    file: str
    content: bytes
    booleans: Mapping[str, bool] = {}
    assertions: Assertions | None = None


class NewPolicy(msgspec.Struct, frozen=True, tag="policy"):
    """A change: this policy takes the place of the one of its module.

    `signature` is what stands beside it; where a key is required, it is checked by who applies it.
    `assertions` stand beside it, too; where the policy comes without any, those in force stay.
    """

    file: str
    content: bytes
    signature: bytes = b""
    assertions: bytes = b""


class NewBooleans(msgspec.Struct, frozen=True, tag="booleans"):
    """A change: these booleans of the Flask policy get these values."""

    values: Mapping[str, bool]


class NewSources(msgspec.Struct, frozen=True, tag="sources"):
    """A change: these policies take the place of all; booleans that were set stay as they are.

    As a reload does in SELinux: an emergency set is not undone by a new file.
    """

    sources: tuple[Source, ...]


Change = NewPolicy | NewBooleans | NewSources


class Policy(msgspec.Struct, frozen=True):
    """A stack and, module by module in the same order, what it is made from."""

    sources: tuple[Source, ...]
    stack: Stack


def load_stack(untrusted_paths: Sequence[str | Path]) -> Stack:
    """Load one policy or several, all of which must allow. Raises `PolicyError`."""
    return read_policy(untrusted_paths).stack


def read_policy(untrusted_paths: Sequence[str | Path]) -> Policy:
    """Read the files of a policy and make its stack. Raises `PolicyError` with every problem."""
    return _policy(partial(_read, path) for path in untrusted_paths)


def policy_info(policy: Policy) -> dict[str, object]:
    """Return a policy as `policy show` prints it, with what each part asserts."""
    modules = []
    for source, module in zip(policy.sources, policy.stack.modules, strict=True):
        written = source.assertions.written if source.assertions else ()
        modules.append({**module_info(module), "assertions": list(map(str, written))})
    return {"digest": policy.stack.digest, "modules": modules}


def make_policy(sources: Sequence[Source], known: Policy | None = None) -> Policy:
    """Make the stack of some sources. Raises `PolicyError` with every problem.

    What `known` was made from is not read again, which takes long for a large policy.
    """
    return _policy((partial(_same, source) for source in sources), known)


def _policy(readers: Iterable[Callable[[], Source]], known: Policy | None = None) -> Policy:
    problems: list[Problem] = []
    sources: list[Source] = []
    modules: list[SecurityModule] = []
    for read in readers:
        try:
            sources.append(read())
            modules.append(_known_module(sources[-1], known) or _module(sources[-1]))
        except PolicyError as error:
            problems += error.problems
    if problems:
        raise PolicyError(problems)
    return Policy(tuple(sources), Stack(modules))


def _same(source: Source) -> Source:
    return source


def _read(untrusted_path: str | Path) -> Source:
    if untrusted_path == DUMMY:
        return Source(DUMMY, b"")
    content = policy_bytes(untrusted_path)
    return Source(str(untrusted_path), content, assertions=_beside(untrusted_path, content))


def _beside(path: str | Path, content: bytes) -> Assertions | None:
    return assertions_of(content, read_assertions(path), str(path))


def changed(policy: Policy, change: Change) -> Policy:
    """Return the policy after a change. Raises `PolicyError`, `InputError` for booleans."""
    if isinstance(change, NewSources):
        new = make_policy(_with_booleans_of(policy, change.sources))
        check_update(policy.stack, new.stack)
        return new
    if isinstance(change, NewBooleans):
        stack = with_booleans(policy.stack, change.values)
    else:
        stack = with_policy(policy.stack, change.content, change.file)
    return Policy(
        tuple(
            source if new is old else _source(source, change, old, new)
            for source, old, new in zip(
                policy.sources, policy.stack.modules, stack.modules, strict=True
            )
        ),
        stack,
    )


def _known_module(source: Source, known: Policy | None) -> SecurityModule | None:
    """Return the module of a source if it was made before, perhaps with other booleans."""
    for old, module in zip(known.sources, known.stack.modules, strict=True) if known else ():
        same = (old.file, old.content) == (source.file, source.content)
        if same and old.booleans.keys() <= source.booleans.keys():
            if source.booleans and isinstance(module, FlaskModule):
                return module.with_booleans(source.booleans)
            return module
    return None


def _with_booleans_of(policy: Policy, sources: Sequence[Source]) -> list[Source]:
    """Return new sources with the booleans that were set in the old ones, as far as they have them.

    At most one module has booleans.
    """
    were = {name: value for source in policy.sources for name, value in source.booleans.items()}
    if not were:
        return list(sources)
    kept = []
    for source in sources:
        module = _module(source)
        names = module.booleans() if isinstance(module, FlaskModule) else {}
        booleans = {name: value for name, value in were.items() if name in names}
        kept.append(msgspec.structs.replace(source, booleans={**source.booleans, **booleans}))
    return kept


def _module(source: Source) -> SecurityModule:
    if source.file == DUMMY and not source.content:
        return DummyModule()
    module = parse_policy(source.content, source.file)
    if source.booleans and isinstance(module, FlaskModule):
        return module.with_booleans(source.booleans)
    return module


def _source(
    source: Source, change: NewPolicy | NewBooleans, old: SecurityModule, new: SecurityModule
) -> Source:
    if isinstance(change, NewPolicy):
        own = assertions_of(change.content, change.assertions, change.file)
        kept = source.assertions if own is None else own
        if own is None and kept and kept.written and old.digest != new.digest:
            _require_names(old, new, change.file)
        return Source(change.file, change.content, assertions=kept)
    return msgspec.structs.replace(source, booleans={**source.booleans, **change.values})


def _require_names(old: SecurityModule, new: SecurityModule, file: str) -> None:
    """Raise `PolicyError` where names of the old policy mean something else in the new one."""
    if renamed := _renamed(old, new):
        shown = ", ".join(f"{name} ({what})" for name, what in sorted(renamed.items())[:_SHOWN])
        message = f"it keeps the assertions in force, but not the names that they use: {shown}"
        fix = f"write what it asserts in {file}{SUFFIX}; assert = [] asserts nothing"
        raise PolicyError([Problem(file, 0, f"{message}; {fix}")])


def _renamed(old: SecurityModule, new: SecurityModule) -> dict[str, str]:
    """Return the labels, or types, whose names another has now or only an alias is."""
    found: dict[str, str] = {}
    if isinstance(old, FlaskModule) and isinstance(new, FlaskModule):
        had = {kind.name for kind in old.policy.types.values()}
        for kind in new.policy.types.values():
            aliases = had.intersection(kind.aliases)
            found |= dict.fromkeys(aliases, f"now an alias of {kind.name}")
    elif isinstance(old, AcmModule) and isinstance(new, AcmModule):
        has = set(new.labels())
        for name in old.labels():
            try:
                carried = new.carry(name)
            except UnknownLabel:
                if name in has:
                    found[name] = "now another label"
                continue
            if carried != name:
                found[name] = f"renamed to {carried}"
    return found

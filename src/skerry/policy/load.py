"""From a file the user names to a security module.

The rules this module keeps: the form is recognised by the content, never by the name; only a
regular file is read, within bounds (`MAX_POLICY_BYTES`; for a FLASK policy as text
`MAX_SOURCE_BYTES`), and reading can't block; a file that can't be read as a policy is a
`PolicyError`, so nothing is ever decided without one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skerry.errors import Denied, PolicyError, Problem
from skerry.policy.acm_toml import read_acm_toml
from skerry.policy.compile import MAX_SOURCE_BYTES, compile_policy, language_of
from skerry.policy.describe import summary
from skerry.policy.files import read_regular
from skerry.policy.policydb.read import MAGIC, read_policydb
from skerry.policy.shype import read_shype
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.dummy import DummyModule
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule

MAX_POLICY_BYTES = 4 * 1024 * 1024
"""Longest policy file, or what a FLASK policy as text is compiled to; a longer one is refused."""

DUMMY = "dummy"
"""In the place of a file: the module without a policy, which separates privilege only."""

_ACM_MAGIC = bytes.fromhex("0001debc")
_MODULE_MAGICS = tuple(bytes.fromhex(magic) for magic in ("8fff7cf9", "8dff7cf9"))
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def load_policy(untrusted_path: str | Path) -> SecurityModule:
    """Load a policy file, or the dummy module for the word `dummy`. Raises `PolicyError`."""
    if untrusted_path == DUMMY:
        return DummyModule()
    return parse_policy(policy_bytes(untrusted_path), str(untrusted_path))


def policy_bytes(untrusted_path: str | Path) -> bytes:
    """Read a policy file: as it stands, or compiled if it is a FLASK policy as text.

    Raises `PolicyError`.
    """
    path, file = Path(untrusted_path), str(untrusted_path)
    content = _read(path)
    language = language_of(content)
    if language:
        content = compile_policy(content, file, language)
    if len(content) > MAX_POLICY_BYTES:
        compiled = " when compiled" if language else ""
        raise _error(file, f"longer than {MAX_POLICY_BYTES} bytes{compiled}")
    return content


def parse_policy(untrusted: bytes, file: str) -> SecurityModule:
    """Make the module of a policy, ACM or FLASK by its content. Raises `PolicyError`."""
    if untrusted.startswith(MAGIC):
        return FlaskModule(read_policydb(untrusted, file))
    if untrusted.startswith(_MODULE_MAGICS):
        message = "this is a compiled policy module, a part of a policy"
        raise _error(file, f"{message}; give the whole (semodule -B makes it of the modules)")
    if language_of(untrusted):
        raise _error(file, "this is a FLASK policy as text; compile it first")
    return AcmModule(parse_acm(untrusted, file))


def load_acm(untrusted_path: str | Path) -> AcmPolicy:
    """Read the model of an ACM policy from either of its forms. Raises `PolicyError`."""
    return parse_acm(policy_bytes(untrusted_path), str(untrusted_path))


def module_info(module: SecurityModule) -> dict[str, Any]:
    """Return one module as `policy show` prints it: its digest, its labels, the operator's."""
    resources = module.policy.resources if isinstance(module, AcmModule) else ()
    return {
        "module": module.name,
        "digest": module.digest,
        "operator": _operator(module),
        "labels": list(module.labels()),
        "resources": [resource.name for resource in resources],
        **(summary(module) if isinstance(module, FlaskModule) else {}),
    }


def _operator(module: SecurityModule) -> str:
    """Return the operator's label, nothing where the policy gives none: it then can't govern."""
    try:
        return module.operator_label()
    except Denied:
        return ""


def parse_acm(untrusted: bytes, file: str) -> AcmPolicy:
    """Parse an ACM policy, XML or TOML by its content. Raises `PolicyError`."""
    if untrusted.startswith(MAGIC):
        raise _error(file, "this is a FLASK policy, and an ACM policy is needed here")
    if untrusted.startswith(_ACM_MAGIC):
        raise _error(file, "this is Xen's compiled ACM policy; give the XML it was made from")
    content = untrusted.removeprefix(_BYTE_ORDER_MARK)
    if not content.strip():
        raise _error(file, "the file is empty")
    if content.lstrip().startswith(b"<"):
        return read_shype(content, file)
    if b"\0" in content:
        raise _error(file, "neither a FLASK policy, nor XML nor TOML in UTF-8")
    return read_acm_toml(content, file)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_SOURCE_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _error(str(path), f"cannot be read: {reason}") from None


def _error(file: str, message: str) -> PolicyError:
    return PolicyError([Problem(file, 0, message)])

"""The bill of materials of an image, in SPDX 2.3 as JSON: the same inputs, the same bytes.

Named are the packages (name, version, hash of the `.deb`, source, package URL), busybox with the
hash of its program, and, one by one, the files that come from no package. The time of creation is
that of the kernel's package, and the namespace follows from the image's inputs, so that two builds
write one document.

Source of the form: https://spdx.github.io/spdx-spec/v2.3/
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec

from skerry.errors import SkerryError
from skerry.image.package import Package
from skerry.image.tree import APPLETS, Placed
from skerry.wire.escape import escape

MAX_DOCUMENT = 32 << 20
"""Longest bill of materials in bytes; a longer one is damaged, and not read."""

_DOCUMENT, _IMAGE = "SPDXRef-DOCUMENT", "SPDXRef-Image"
_NONE = "NOASSERTION"


class Bill(msgspec.Struct, frozen=True):
    """What of a bill of materials is compared: versions and hashes of packages, hashes of files."""

    packages: Mapping[str, tuple[str, str]]
    files: Mapping[str, str]


def document(
    name: str,
    key: str,
    packages: Iterable[Package],
    program: Package,
    placed: Mapping[str, Placed],
    created: int,
) -> bytes:
    """Return the document for an image of these packages and entries.

    `program` is the builder's own busybox, with the hash of the program; `key` is the digest of the
    image's inputs, `created` seconds since the epoch.
    """
    listed = [_package(package) for package in packages]
    names = {package["name"] for package in listed}
    listed.append(_program(program))
    files = [
        _file(path, one.entry.data)
        for path, one in sorted(placed.items())
        if stat.S_ISREG(one.entry.mode) and one.origin not in (*names, APPLETS)
    ]
    whole = _whole(name, key, files)
    found = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": _DOCUMENT,
        "name": f"skerry-image-{name}",
        "documentNamespace": f"https://spdx.org/spdxdocs/skerry-image-{name}-{key}",
        "creationInfo": {
            "created": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: skerry"],
        },
        "packages": [whole, *listed],
        "files": files,
        "relationships": [
            _relation(_DOCUMENT, "DESCRIBES", _IMAGE),
            *(_relation(_IMAGE, "CONTAINS", one["SPDXID"]) for one in (*listed, *files)),
        ],
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


def read(untrusted: bytes, place: str) -> Bill:
    """Return what a document says of packages and files. Raises `SkerryError` if it is damaged."""
    try:
        if len(untrusted) > MAX_DOCUMENT:
            raise ValueError("too long")
        found = msgspec.json.decode(untrusted, type=_Document)
        if found.spdxVersion != "SPDX-2.3":
            raise ValueError(f"its form is {found.spdxVersion[:20]!a}")
        packages = {
            one.name: (one.versionInfo, _sha256(one.checksums))
            for one in found.packages
            if one.SPDXID != _IMAGE
        }
        return Bill(packages, {one.fileName: _sha256(one.checksums) for one in found.files})
    except (ValueError, RecursionError) as error:
        raise SkerryError(
            f"the bill of materials {place} is damaged: {escape(str(error))}",
            fix="build the image again",
        ) from error


def _sha256(checksums: Iterable[_Checksum]) -> str:
    found = [one.checksumValue for one in checksums if one.algorithm == "SHA256"]
    if len(found) != 1:
        raise ValueError("a package or a file has no SHA-256, or several")
    return found[0]


class _Checksum(msgspec.Struct):
    algorithm: str
    checksumValue: str


class _Package(msgspec.Struct):
    SPDXID: str
    name: str
    versionInfo: str
    checksums: list[_Checksum] = []


class _File(msgspec.Struct):
    fileName: str
    checksums: list[_Checksum]


class _Document(msgspec.Struct):
    spdxVersion: str
    packages: list[_Package]
    files: list[_File]


def _whole(name: str, key: str, files: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe the image itself, whose own files are those that no package has."""
    return {
        "SPDXID": _IMAGE,
        "name": name,
        "versionInfo": key[:16],
        "downloadLocation": _NONE,
        "filesAnalyzed": True,
        "packageVerificationCode": {"packageVerificationCodeValue": _verification(files)},
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        **_unstated(),
    }


def _package(package: Package) -> dict[str, Any]:
    described: dict[str, Any] = {
        "SPDXID": f"SPDXRef-Package-{_idstring(package.name)}",
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": _NONE,
        "filesAnalyzed": False,
        "checksums": [{"algorithm": "SHA256", "checksumValue": package.sha256}],
        "sourceInfo": f"built from the Debian source package {package.source or package.name}",
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"pkg:deb/debian/{quote(package.name)}"
                f"@{quote(package.version)}?arch={package.architecture}",
            }
        ],
        **_unstated(),
    }
    if re.fullmatch(r"https?://[!-~]{1,500}", package.homepage):
        described["homepage"] = package.homepage
    return described


def _program(program: Package) -> dict[str, Any]:
    """Describe what comes of the builder's machine, apart from a package that may be there too."""
    return {
        **_package(program),
        "SPDXID": f"SPDXRef-Program-{_idstring(program.name)}",
        "name": f"{program.name} (program)",
        "sourceInfo": f"the builder's own program of the Debian package {program.name}",
    }


def _file(path: str, data: bytes) -> dict[str, Any]:
    # SPDX demands a SHA-1 beside whatever else there is; it is no evidence here.
    sha1 = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    return {
        "SPDXID": f"SPDXRef-File-{hashlib.sha256(path.encode()).hexdigest()[:24]}",
        "fileName": f"./{path}",
        "checksums": [
            {"algorithm": "SHA1", "checksumValue": sha1},
            {"algorithm": "SHA256", "checksumValue": hashlib.sha256(data).hexdigest()},
        ],
        "licenseConcluded": _NONE,
        "licenseInfoInFiles": [_NONE],
        "copyrightText": _NONE,
    }


def _verification(files: Iterable[Mapping[str, Any]]) -> str:
    """Return SPDX's code of the files that the image has beside its packages."""
    sums = sorted(file["checksums"][0]["checksumValue"] for file in files)
    return hashlib.sha1("".join(sums).encode(), usedforsecurity=False).hexdigest()


def _unstated() -> dict[str, str]:
    return {
        "supplier": _NONE,
        "licenseConcluded": _NONE,
        "licenseDeclared": _NONE,
        "copyrightText": _NONE,
    }


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def _idstring(name: str) -> str:
    # Upper case, which no package's name has, so that two names stay two.
    return name.replace("+", "-PLUS-")

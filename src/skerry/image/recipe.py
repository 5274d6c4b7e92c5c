"""What an image is made of, as a user writes it: one TOML file, every mistake at its line.

The rules: a `Recipe` comes out only if nothing was wrong with the file; no key of it runs
anything; every limit is read before anything is fetched. The presets are recipes too, in
`guest/presets`, and a user's file may build on one of them (`base`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import msgspec

from skerry.errors import InputError, Problem
from skerry.image import store
from skerry.label import MAX_LABEL
from skerry.system.files import read_text
from skerry.system.model import AUDIT_DOMAIN, MANAGER_DOMAIN
from skerry.system.section import Report, Section, echo
from skerry.system.toml_lines import Path as Place
from skerry.system.toml_lines import nearest_line, parse_toml

MAX_RECIPE = 1 << 18
"""Longest recipe, in bytes; a longer one is refused unread."""
MAX_FILES = 4096
"""Most files that a recipe copies; with more it is refused."""
MAX_WORDS = 64
"""Most words of `start`; with more the recipe is refused."""
SIZE = 256 << 20
"""Bytes of an image's files where `[limits]` does not say; over it no image is made."""
PACKAGES = 128
"""Packages of an image where `[limits]` does not say; with more no image is made."""

Base = Literal["minimal", "python", "selinux"]
PRESETS: tuple[str, ...] = (*get_args(Base), MANAGER_DOMAIN, AUDIT_DOMAIN)
"""The images that `up` builds by itself; no other may have their names."""

GUEST = Path(__file__).resolve().parents[3] / "guest"

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{0,62}[a-z0-9+](=[A-Za-z0-9.+~:-]{1,80})?")
_EXCLUDE = re.compile(r"[a-z0-9][a-z0-9+.-]{0,62}[a-z0-9+]")
_MODE = re.compile(r"[0-7]{3,4}")
_PATTERN = re.compile(r"[^/\s][^\s]{0,200}")
_RANGE = re.compile(r"s0(:c[0-9]{1,4}([.,]c[0-9]{1,4}){0,99})?")
_RANGE_WORDS = 'a range of the guest\'s policy, like "s0:c1,c5"'
_PLAIN = re.compile(r"[A-Za-z0-9./_+-]+")
_TAKEN = ("proc", "sys", "dev", "run")


class Copied(msgspec.Struct, frozen=True):
    """A file of the host that goes into the image, at `target` below its root.

    `source` has no link in it, and lies below the folder of the recipe if a user wrote that.
    `range`: where SELinux enforces, it is data of the confined service, of this range.
    """

    source: Path
    target: str
    mode: int
    line: int
    range: str = ""


class Recipe(msgspec.Struct, frozen=True):
    """One image, described.

    `packages`: Debian packages, perhaps `NAME=VERSION`; `exclude`: packages that are not taken in
    though something needs them; `drop`: patterns of paths that packages don't put in; `keep`: of
    those that they do, though it is left out otherwise; `init`: the first program, in place of
    Skerry's; `start`: a command that the guest runs and starts again when it ends; `selinux`:
    whether the guest enforces Debian's SELinux policy, which only the base `selinux` says;
    `confine`: whether `start` runs as its confined service, in the range that the domain's label
    has in `ranges` or, if it is a Flask label, itself. Sizes in bytes.

    Only the images of services have `application`, the one module that the guest runs: what that
    does not need of Python's library is not in the image, and what is has its bytecode beside it.
    """

    name: str
    path: Path
    packages: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    files: tuple[Copied, ...] = ()
    init: str = ""
    start: tuple[str, ...] = ()
    selinux: bool = False
    confine: bool = False
    ranges: Mapping[str, str] = {}
    application: str = ""
    max_size: int = SIZE
    max_packages: int = PACKAGES
    lines: Mapping[Place, int] = {}

    def line_of_package(self, name: str) -> int:
        """Return the line on which a package is named, that of the key if it is a base's."""
        for path, line in self.lines.items():
            if path[:-1] in (("packages",), ("exclude",)) and isinstance(path[-1], int):
                named = (self.packages, self.exclude)[path[0] == "exclude"]
                if path[-1] < len(named) and named[path[-1]].partition("=")[0] == name:
                    return line
        return nearest_line(self.lines, ("packages",))


def preset(name: str) -> Recipe:
    """Return the recipe of a preset."""
    if name == "minimal":
        return Recipe(name, GUEST / "init")
    if name not in get_args(Base):
        from skerry.image.services import service  # which builds upon the presets

        return service(name)
    path = GUEST / "presets" / f"{name}.toml"
    return _parse(read_text(path, MAX_RECIPE), path, own=True)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises `InputError` with every problem found, in the file's order."""
    return parse_recipe(read_text(path, MAX_RECIPE), path.absolute())


def parse_recipe(untrusted_text: str, path: Path) -> Recipe:
    """Read the text of a recipe that stands (or would stand) at `path`. Raises `InputError`."""
    return _parse(untrusted_text, path, own=False)


def _parse(text: str, path: Path, *, own: bool) -> Recipe:
    report = Report(str(path), parse_toml(text, str(path)))
    top = Section(report, (), report.document.data)
    top.require("name", 'name = "my-image"')
    base: Base = top.choice("base", "minimal", Base)
    limits = top.section("limits")
    recipe = Recipe(
        name=_name(top, own),
        path=path,
        packages=_texts(top, "packages", _PACKAGE, 'Debian packages, like "nginx-light"'),
        exclude=_texts(top, "exclude", _EXCLUDE, 'Debian packages, like "dpkg"'),
        drop=_texts(top, "drop", _PATTERN, 'patterns of paths, like "usr/share/zoneinfo/*"'),
        keep=_texts(top, "keep", _PATTERN, 'patterns of paths, like "usr/share/locale/*"'),
        files=_files(top, path.parent),
        init=_init(top),
        start=_words(top, "start"),
        selinux=own and top.flag("selinux", False),
        confine=top.flag("confine", False),
        ranges=_ranges(top.section("ranges")),
        max_size=limits.size("size", SIZE, "1M", "4G"),
        max_packages=limits.number("packages", PACKAGES, 0, 4096),
        lines=report.document.lines,
    )
    limits.end()
    top.end()
    if recipe.init and recipe.start:
        top.problem("start", "start is what Skerry's init runs, and init stands in its place")
    if base != "selinux":
        _without_selinux(top, recipe)
    elif recipe.confine and not recipe.start:
        top.problem("confine", "confine is about what start runs, and there is none")
    if report.problems:
        raise InputError(sorted(dict.fromkeys(report.problems), key=lambda problem: problem.line))
    return recipe if base == "minimal" else _upon(preset(base), recipe)


def _upon(base: Recipe, recipe: Recipe) -> Recipe:
    """Return a recipe with all that its base has; what both say, the recipe's own counts."""
    if recipe.init and base.selinux:
        line = recipe.lines.get(("init",), 0)
        message = "the first program of a guest with SELinux loads the policy; say start"
        raise InputError([Problem(str(recipe.path), line, message)])
    targets = {copied.target for copied in recipe.files}

    def both(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*one, *other)))

    return msgspec.structs.replace(
        recipe,
        packages=both(recipe.packages, base.packages),
        exclude=both(recipe.exclude, base.exclude),
        drop=both(recipe.drop, base.drop),
        keep=both(recipe.keep, base.keep),
        files=(*recipe.files, *(f for f in base.files if f.target not in targets)),
        init=recipe.init or base.init,
        start=recipe.start or base.start,
        selinux=recipe.selinux or base.selinux,
    )


def _without_selinux(top: Section, recipe: Recipe) -> None:
    """Report what only a guest with SELinux can do."""
    ranged = next((copied for copied in recipe.files if copied.range), None)
    for key, found in (("confine", recipe.confine), ("ranges", recipe.ranges), ("files", ranged)):
        if found:
            what = "a file's range" if key == "files" else key
            top.problem(key, f'{what} needs SELinux in the guest: base = "selinux"')


def _ranges(table: Section) -> dict[str, str]:
    """Return the range of each label that has a line."""
    ranges = {}
    for label in table.names():
        if not label.isprintable() or len(label) > MAX_LABEL or label != label.strip():
            table.problem(label, f"a label is printable text, not {echo(label)}")
        ranges[label] = table.text(label, "", _RANGE, _RANGE_WORDS)
    return ranges


def _name(top: Section, own: bool) -> str:
    words = "1 to 63 of a-z, 0-9 and -, beginning with a letter"
    name = top.text("name", "", store.NAME, words)
    if name in PRESETS and not own:
        top.problem("name", f"{name} is a preset's name; take another, with base = {name!a}")
    return name


def _texts(top: Section, key: str, pattern: re.Pattern[str], words: str) -> tuple[str, ...]:
    texts = top.texts(key)
    for text in texts:
        if not pattern.fullmatch(text):
            index = _index(top.value(key), text)
            top.report((key, index), f"{key} must hold {words}, not {echo(text)}")
    return texts


def _index(values: object, text: str) -> int:
    return values.index(text) if isinstance(values, list) else 0


def _words(top: Section, key: str) -> tuple[str, ...]:
    value = top.value(key)
    if value is None:
        return ()
    words = value if isinstance(value, list) else []
    good = [w for w in words if isinstance(w, str) and "\0" not in w and len(w) <= 4096]
    if not good or len(good) != len(words) or len(words) > MAX_WORDS or good[0][:1] != "/":
        what = 'a command and its words, like ["/usr/bin/python3", "/srv/app.py"]'
        top.problem(key, f"{key} must be {what}, not {echo(value)}")
    return tuple(good)


def _files(top: Section, folder: Path) -> tuple[Copied, ...]:
    tables = top.sections("files")
    if len(tables) > MAX_FILES:
        top.problem("files", f"{len(tables)} files, and an image takes {MAX_FILES}")
        return ()
    seen: set[str] = set()
    copied = []
    for table in tables:
        table.require("from", 'from = "a file beside this one"')
        table.require("to", 'to = "/its/path/in/the/guest"')
        source, target = table.value("from"), _target(table, "to")
        if "from" in table and not (isinstance(source, str) and source and source.isprintable()):
            table.problem("from", f"from must name a file, not {echo(source)}")
        mode = table.text("mode", "0644", _MODE, 'a mode in octal, like "0755"')
        range_ = table.text("range", "", _RANGE, _RANGE_WORDS)
        table.end()
        if target and target in seen:
            table.problem("to", f"two files go to /{target}")
        seen.add(target)
        found = _source(table, folder, source) if isinstance(source, str) else folder
        copied.append(Copied(found, target, int(mode, 8), table.line("to"), range_))
    return tuple(copied)


def _source(table: Section, folder: Path, source: str) -> Path:
    """Return where a file lies once links are followed: an image tells everybody what is in it."""
    if not source.isprintable():
        return folder
    home = Path(os.path.realpath(folder))
    found = Path(os.path.realpath(home / source))
    if not found.is_relative_to(home):
        table.problem("from", f"from must stay below the folder of this file, not {echo(source)}")
    elif not os.path.isfile(found):  # noqa: PTH113  -- of a name that is too long it says no
        table.problem("from", f"there is no file {echo(str(found))}")
    return found


def _init(top: Section) -> str:
    """Return the first program: a word of the kernel's command line, so a plain one."""
    path = _target(top, "init")
    if path and not _PLAIN.fullmatch(path):
        top.problem("init", f"init must be a path of letters, digits and ./_+-, not {echo(path)}")
    return path


def _target(table: Section, key: str) -> str:
    """Return an absolute path of the guest, without its first slash."""
    value = table.value(key)
    if value is None:
        return ""
    path = PurePosixPath(value) if isinstance(value, str) else PurePosixPath()
    if not (isinstance(value, str) and str(path) == value != "/" and path.root == "/"):
        table.problem(key, f"{key} must be a path from the guest's /, not {echo(value)}")
    elif ".." in path.parts or not value.isprintable() or len(value.encode()) > 1000:
        table.problem(key, f"{key} must stay below the guest's /, not {echo(value)}")
    elif path.parts[1] in _TAKEN:
        table.problem(key, f"/{path.parts[1]} is filled when the guest starts, not {echo(value)}")
    else:
        return value[1:]
    return ""

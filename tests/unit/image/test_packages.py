"""Images of Debian's real packages, fetched by apt into the tests' cache."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench.rows import image as image_rows
from skerry.errors import InputError, SkerryError
from skerry.image import compare, minimal, spdx, store, tree
from skerry.image.build import build
from skerry.image.cache import locked
from skerry.image.closure import closure
from skerry.image.package import Package
from skerry.image.recipe import Recipe, parse_recipe, preset
from skerry.image.store import Image
from tests.support.machines import cache

SMALL = 8_000_000
"""Bytes under which the initramfs of `minimal` stays, compressed."""
HELLO = 8_000_000
"""Bytes under which the initramfs of a recipe with the package `hello` stays, unpacked."""

APP = """\
name = "app"
packages = [
  "hello",
  {more}
]
exclude = ["libgcc-s1"{excluded}]
"""


@pytest.fixture
def fresh() -> Iterator[Path]:
    """Give a cache that holds packages and no image."""
    shelf = cache() / "packages"
    shelf.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="images-", dir=cache()) as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "packages").symlink_to(shelf)
        yield Path(folder)


def packages(home: Path, *more: str, excluded: str = "") -> dict[str, str]:
    """Return name and version of each package that a recipe needs."""
    text = APP.format(more="".join(f'"{name}",\n' for name in more), excluded=excluded)
    with locked(home):
        return {p.name: p.version for p in closure(home, parse_recipe(text, home / "app.toml"))}


@pytest.mark.parametrize("name", ["python", "selinux", "policy-manager"])
def test_a_preset_is_the_same_bytes_whoever_builds_it(name: str, fresh: Path) -> None:
    """The one in the tests' cache and one made anew, in every file and in the description."""
    one = build(cache(), preset(name))
    other = build(fresh, preset(name))
    assert one.kernel.parent != other.kernel.parent
    for part in (*sorted(one.sizes), store.MANIFEST):
        left, right = one.kernel.parent / part, other.kernel.parent / part
        assert store.sha256(left) == store.sha256(right), part
    store.verify(other)


def test_minimal_is_small(fresh: Path) -> None:
    """From packages that are here already, kernel included; the initramfs as gzip has it."""
    build(fresh, preset("minimal"))
    store.remove(fresh, "minimal")
    image = build(fresh, preset("minimal"))
    assert image.compressed < SMALL


def test_the_benchmark_builds_the_image_anew_and_says_how_large_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From packages that are here, for each figure once more; the kernel's size is said beside."""
    monkeypatch.setattr(image_rows, "BUILDS", 2)
    row, known = image_rows.megabytes(), build(cache(), preset("minimal"))
    assert (row.ours, row.goal, row.holds) == (known.compressed / 1e6, "< 8", "yes")
    assert f"its kernel {known.sizes['bzImage'] / 1e6:.1f} MB as bzImage" in capsys.readouterr().err
    made: list[Image] = []

    def spied(home: Path, recipe: Recipe) -> Image:
        made.append(build(home, recipe))
        return made[-1]

    monkeypatch.setattr(image_rows, "build", spied)
    row = image_rows.seconds()
    assert (row.goal, row.holds) == ("< 30", "yes")
    fresh = {one.kernel.parent for one in made} - {known.kernel.parent}
    assert len(fresh) == 2
    assert {one.digest for one in made} == {known.digest}


@pytest.mark.parametrize("name", ["minimal", "python"])
def test_a_bill_of_materials_is_valid_spdx(name: str) -> None:
    """By SPDX's own tools, which find what is wrong with another one."""
    image = build(cache(), preset(name))
    assert spdx_tools(image.sbom) == (0, "")
    with tempfile.TemporaryDirectory() as folder:
        wrong = Path(folder) / "wrong.spdx.json"
        wrong.write_bytes(image.sbom.read_bytes().replace(b"SPDXRef-Image", b"Image"))
        assert spdx_tools(wrong)[0] == 1


def spdx_tools(path: Path) -> tuple[int, str]:
    """Validate a document; return the exit code and the errors."""
    argv = [sys.executable, "-W", "ignore", "-m", "spdx_tools.spdx.clitools.pyspdxtools", "-i"]
    done = subprocess.run([*argv, path], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


def test_a_bill_of_materials_names_every_package_and_file() -> None:
    """Packages with the hashes of apt's lists; the files that no package has, one by one."""
    image = build(cache(), preset("python"))
    bill = spdx.read(image.sbom.read_bytes(), "")
    named = {f"{n}={version}": sha256 for n, (version, sha256) in bill.packages.items()}
    debs = {n: digest for n, digest in image.sources.items() if "=" in n and " " not in n}
    program = minimal.busybox_package(minimal.busybox_program())
    assert named == debs | {f"{program.name} (program)={program.version}": program.sha256}
    assert len(named) == image.packages
    assert image.sources[f"program {program.name}={program.version}"] == program.sha256
    assert {"python3-minimal", "libc6"} <= bill.packages.keys()
    assert "dpkg" not in bill.packages
    files = compare.files_of(image)
    theirs = {path for one in debs for path in packed(cache() / "packages", one)}
    ours = {f"./{p}": f.sha256 for p, f in files.items() if f.kind == "file" and p not in theirs}
    assert bill.files == ours
    assert "./init" in ours
    assert {"usr/bin/python3.11", "usr/bin/python3.13"} & files.keys() & theirs
    assert not any(path.startswith("usr/share/man") for path in files)
    assert any(path.endswith("/copyright") for path in files)


def packed(shelf: Path, package: str) -> set[str]:
    """Return what dpkg says that a package holds, as paths in a merged `/usr`."""
    name, _, version = package.partition("=")
    deb = shelf / f"{name}_{version.replace(':', '%3a')}.deb"
    shown = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True)
    paths = [line.split(maxsplit=5)[5].partition(" ")[0] for line in shown.stdout.splitlines()]
    found = {path.removeprefix("./") for path in paths}
    return {f"usr/{p}" if p.partition("/")[0] in tree.MERGED else p for p in found}


BILL = (
    b'{"spdxVersion": "SPDX-2.3", "packages": [], "files": [{"fileName": "x", "checksums": [%s]}]}'
)
SUM = b'{"algorithm": "SHA256", "checksumValue": "0"}'


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b"{}", b"[" * 100_000, b'{"spdxVersion": "SPDX-9"}', BILL % b"", BILL % (SUM * 2)),
        *(BILL % (SUM + b"," + SUM), BILL % SUM.replace(b"256", b"1"), b'{"\x1b[2J": 1}'),
    ],
)
def test_a_damaged_bill_is_refused(damage: bytes) -> None:
    """In one line that names it and can be printed; one that has all it needs is read."""
    assert spdx.read(BILL % SUM, "sbom").files == {"x": "0"}
    with pytest.raises(SkerryError, match="materials sbom is damaged") as caught:
        spdx.read(damage, "sbom")
    assert str(caught.value).isprintable()


def test_every_part_of_a_bill_has_an_identity_of_its_own() -> None:
    """Also busybox, where the image has Debian's package of it too, and names that are near."""
    names = ("busybox-static", "busybox", "a+b", "a-plus-b")
    listed = [Package(name, "1", 0, "0" * 64) for name in names]
    program = Package("busybox-static", "1", 0, "1" * 64)
    raw = spdx.document("app", "0" * 64, listed, program, {}, 0)
    found = [one["SPDXID"] for one in json.loads(raw)["packages"]]
    assert len(found) == len(set(found)) == len(names) + 2
    bill = spdx.read(raw, "").packages
    assert bill.keys() == {*names, "busybox-static (program)"}
    assert bill["busybox-static (program)"] == ("1", "1" * 64)


def test_what_few_programs_need_is_left_out_and_can_be_kept(fresh: Path) -> None:
    """The tables of character sets, in an image of any base; with `keep`, all of them are there."""
    tables = "usr/lib/x86_64-linux-gnu/gconv/"
    text = 'name = "app"\npackages = ["hello"]\n'
    image = build(fresh, parse_recipe(text, fresh / "app.toml"))
    files = compare.files_of(image)
    assert "usr/bin/hello" in files
    assert not [path for path in files if path.startswith((tables, "usr/share/gcc/"))]
    assert image.files < 90
    assert image.sizes["initrd"] < HELLO
    kept = parse_recipe(f'{text}keep = ["usr/lib/*/gconv/*"]\n', fresh / "app.toml")
    found = build(fresh, kept)
    more = compare.files_of(found).keys() - files.keys()
    assert len(more) > 200
    assert all(path.startswith(tables) for path in more)
    assert found.sources == image.sources
    assert found.digest != image.digest
    based = parse_recipe(text + 'base = "python"\n', fresh / "app.toml")
    assert not [path for path in compare.files_of(build(fresh, based)) if path.startswith(tables)]


def test_what_is_needed_comes_along_and_what_is_excluded_does_not(fresh: Path) -> None:
    """And nothing that is only recommended."""
    found = packages(fresh)
    assert {"hello", "libc6"} <= found.keys()
    assert "libgcc-s1" not in found
    assert "libc6" not in packages(fresh, excluded=', "libc6"')


def test_a_version_can_be_pinned(fresh: Path) -> None:
    """The one there is; another one is named as missing."""
    found = packages(fresh)
    assert packages(fresh, f"libc6={found['libc6']}") == found
    with pytest.raises(InputError, match="no package 'libc6'"):
        packages(fresh, "libc6=0.1")


@pytest.mark.parametrize("name", ["no-such-package", "python3.9999", "awk"])
def test_a_package_that_does_not_exist_is_named_at_its_line(name: str, fresh: Path) -> None:
    """A name is never taken for a pattern, and one that several provide is none."""
    with pytest.raises(InputError) as caught:
        packages(fresh, name)
    assert [(p.line, f"'{name}'" in p.message) for p in caught.value.problems] == [(4, True)]


def test_an_excluded_package_that_does_not_exist_is_named_at_its_line(fresh: Path) -> None:
    """A slip there would change nothing, silently."""
    with pytest.raises(InputError, match="no package 'libgcc-s9'") as caught:
        packages(fresh, excluded=', "libgcc-s9"')
    assert [problem.line for problem in caught.value.problems] == [6]


def test_more_packages_than_the_limit_are_refused(fresh: Path) -> None:
    """Before any is fetched; at the limit they are taken."""
    recipe = parse_recipe(APP.format(more="", excluded=""), fresh / "app.toml")
    with locked(fresh):
        count = len(closure(fresh, recipe))
        assert closure(fresh, msgspec.structs.replace(recipe, max_packages=count))
        with pytest.raises(SkerryError, match=f"needs {count} packages, over its limit"):
            closure(fresh, msgspec.structs.replace(recipe, max_packages=count - 1))


def test_what_cannot_do_without_the_excluded_is_said(fresh: Path) -> None:
    """In one line, with apt's reason; without the exclusion there is a way."""
    text = 'name = "a"\npackages = ["libpython3-stdlib"]\n'
    way = parse_recipe(text, fresh / "app.toml")
    with locked(fresh):
        found = [p.name for p in closure(fresh, way)]
        needed = next(name for name in found if name.endswith("-minimal"))
        blocked = msgspec.structs.replace(way, exclude=(needed,))
        with pytest.raises(SkerryError, match=f"Depends: {needed}") as caught:
            closure(fresh, blocked)
    assert "\n" not in str(caught.value)

"""What a user writes of an image: read whole, or refused with every mistake at its line."""

from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.image.recipe import PRESETS, Recipe, parse_recipe, preset

GOOD = """\
name = "app"
base = "python"
packages = ["hello"]
exclude = ["libc-bin"]
drop = ["usr/share/zoneinfo/*"]
start = ["/usr/bin/python3", "/srv/app.py", "-v", "-v"]

[[files]]
from = "app.py"
to = "/srv/app.py"
mode = "0755"

[limits]
size = "64M"
packages = 40
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the file that the recipe copies."""
    (tmp_path / "app.py").write_text("print(1)\n")
    return tmp_path


def read(folder: Path, text: str) -> Recipe:
    """Read a recipe of this text."""
    return parse_recipe(text, folder / "image.toml")


def problems(folder: Path, text: str) -> list[tuple[int, str]]:
    """Return the lines and the words of what is wrong with it."""
    with pytest.raises(InputError) as caught:
        read(folder, text)
    return [(problem.line, problem.message) for problem in caught.value.problems]


def test_a_recipe_is_read_with_its_base(folder: Path) -> None:
    """What the file says comes first; the rest is the preset's."""
    recipe, base = read(folder, GOOD), preset("python")
    assert recipe.packages == ("hello", *base.packages)
    assert recipe.exclude == ("libc-bin", *base.exclude)
    assert set(base.drop) < set(recipe.drop)
    kept = read(folder, GOOD.replace("drop = ", 'keep = ["usr/lib/*/gconv/*"]\ndrop = '))
    assert (kept.keep, recipe.keep) == (("usr/lib/*/gconv/*",), ())
    assert recipe.start == ("/usr/bin/python3", "/srv/app.py", "-v", "-v")
    assert [(f.source, f.target, f.mode) for f in recipe.files] == [
        (folder / "app.py", "srv/app.py", 0o755)
    ]
    assert (recipe.max_size, recipe.max_packages) == (64 << 20, 40)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('name = "app"', 'name = "App"', 1, "name must be"),
        ('name = "app"', 'name = "minimal"', 1, "preset's name"),
        ('base = "python"', 'base = "pyton"', 2, "did you mean 'python'"),
        ('base = "python"', "selinux = true", 2, "unknown key 'selinux'"),
        ('["hello"]', '["-o=x"]', 3, "Debian packages"),
        ('["hello"]', '["hello", "hello"]', 3, "twice"),
        ('["libc-bin"]', '"libc-bin"', 4, "list of texts"),
        ('"usr/share/zoneinfo/*"', '"/usr/share"', 5, "patterns of paths"),
        ("drop =", 'keep = ["/usr"]\ndrop =', 5, "keep must hold patterns of paths"),
        ('["/usr/bin/python3",', '["python3",', 6, "start must be a command"),
        ("start =", 'run = ["rm", "-rf", "/"]\nstart =', 6, "unknown key 'run'"),
        ('"app.py"', '"none.py"', 9, "there is no file"),
        ('"app.py"', f'"{"a" * 300}"', 9, "there is no file"),
        ('mode = "0755"', 'mode = "rwx"', 11, "mode in octal"),
        ('mode = "0755"', 'owner = "root"', 11, "unknown key 'owner'"),
        ('"64M"', '"64"', 14, "a size with its unit"),
        ('"64M"', '"1T"', 14, "from 1M to 4G"),
        ("packages = 40", "packages = -1", 15, "from 0 to 4096"),
    ],
)
def test_a_mistake_is_named_at_its_line(
    old: str, new: str, line: int, words: str, folder: Path
) -> None:
    """One wrong line in a file that is right otherwise; nothing else is found wrong with it."""
    found = problems(folder, GOOD.replace(old, new, 1))
    assert [at for at, _ in found] == [line]
    assert words in found[0][1]


def test_every_mistake_is_found_at_once(folder: Path) -> None:
    """In the file's order."""
    text = GOOD.replace('"app"', '"A"').replace('"0755"', '"8"').replace('"64M"', "1")
    assert [line for line, _ in problems(folder, text)] == [1, 11, 14]


@pytest.mark.parametrize(
    "target",
    ["srv/app.py", "/srv/../../etc/x", "/..", "//etc/x", "/srv/./x", "/srv/", "/", "/proc/x"],
)
def test_a_target_that_leads_out_of_the_image_is_refused(target: str, folder: Path) -> None:
    """Nor one that the guest would cover; the file's own target is the control."""
    assert read(folder, GOOD).files[0].target == "srv/app.py"
    found = problems(folder, GOOD.replace('"/srv/app.py"\nmode', f'"{target}"\nmode'))
    assert [line for line, _ in found] == [10]


@pytest.mark.parametrize(
    "source", ["/etc/shadow", "../secret", "sub/../../secret", "link", "to/secret"]
)
def test_a_file_of_another_folder_is_refused(source: str, tmp_path: Path) -> None:
    """By an absolute path, a climbing one or a link; a link to a file of the folder is followed."""
    folder = tmp_path / "own"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "app.py").write_text("")
    (folder / "near").symlink_to("sub/../app.py")
    (folder / "link").symlink_to("../secret")
    (folder / "to").symlink_to("..")
    near = read(folder, GOOD.replace('"app.py"', '"near"'))
    assert near.files[0].source == folder / "app.py"
    found = problems(folder, GOOD.replace('"app.py"', f'"{source}"'))
    assert found == [(9, f"from must stay below the folder of this file, not {source!r}")]


def test_two_files_of_one_target_are_refused(folder: Path) -> None:
    """Neither would say which one counts."""
    again = '[[files]]\nfrom = "app.py"\nto = "/srv/app.py"\n'
    assert problems(folder, GOOD + again) == [(18, "two files go to /srv/app.py")]


def test_an_init_takes_the_place_of_start_and_of_no_policy(folder: Path) -> None:
    """Skerry's init runs `start`; the first program of SELinux loads the policy."""
    plain = 'name = "a"\ninit = "/srv/init"\n'
    assert read(folder, plain).init == "srv/init"
    injected = plain.replace("/srv/init", "/srv/init security=none")
    assert problems(folder, injected)[0][0] == 2
    assert problems(folder, plain + 'start = ["/bin/sh"]\n')[0][0] == 3
    found = problems(folder, plain.replace("init =", 'base = "selinux"\ninit ='))
    assert found == [(3, "the first program of a guest with SELinux loads the policy; say start")]


def test_a_recipe_over_its_bound_is_refused_unread(folder: Path) -> None:
    """By its length alone."""
    from skerry.image.recipe import MAX_RECIPE, read_recipe

    path = folder / "image.toml"
    path.write_text(GOOD)
    assert read_recipe(path).name == "app"
    path.write_text(GOOD + "#" * MAX_RECIPE)
    with pytest.raises(InputError, match="longer than"):
        read_recipe(path)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_recipe(name: str) -> None:
    """Each can be read; only `selinux` says that it is SELinux."""
    recipe = preset(name)
    assert recipe.name == name
    assert recipe.selinux is (name == "selinux")


def test_the_page_shows_a_recipe(folder: Path) -> None:
    """The file of docs/images.md, with every key that there is, is one."""
    page = (Path(__file__).parents[3] / "docs/images.md").read_text()
    text = page.partition("## The file\n\n```toml\n")[2].partition("```")[0]
    (folder / "ledger.py").write_text("")
    recipe = read(folder, text)
    assert (recipe.name, recipe.start[0]) == ("ledger", "/usr/bin/python3")


CONFINED = """\
name = "ledger"
base = "selinux"
start = ["/usr/local/bin/ledger"]
confine = true

[[files]]
from = "app.py"
to = "/srv/red"
range = "s0:c1"

[ranges]
"bank-a" = "s0:c1"
"acm=b c,flask=u:r:t" = "s0:c2.c5,c9"
"""


def test_a_confined_service_has_ranges_by_label(folder: Path) -> None:
    """Those of its data and those that labels get."""
    recipe = read(folder, CONFINED)
    assert (recipe.selinux, recipe.confine) == (True, True)
    assert recipe.ranges == {"bank-a": "s0:c1", "acm=b c,flask=u:r:t": "s0:c2.c5,c9"}
    assert recipe.files[0].range == "s0:c1"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('"s0:c2.c5,c9"', '"s1"', 13, "a range of the guest's policy"),
        ('"s0:c2.c5,c9"', '"s0:c1 x"', 13, "a range of the guest's policy"),
        ('"s0:c2.c5,c9"', "3", 13, "a range of the guest's policy"),
        ('"acm=b c,flask=u:r:t"', '" x"', 13, "a label is printable text"),
        ('"acm=b c,flask=u:r:t"', '"x\\ny"', 13, "a label is printable text"),
        ('range = "s0:c1"', 'range = "c1"', 9, "a range of the guest's policy"),
        ("confine = true", "confine = 1", 4, "true or false"),
    ],
)
def test_a_wrong_range_is_named_at_its_line(
    old: str, new: str, line: int, words: str, folder: Path
) -> None:
    """One wrong line in a recipe that is right otherwise."""
    found = problems(folder, CONFINED.replace(old, new, 1))
    assert [at for at, _ in found] == [line]
    assert words in found[0][1]


def test_ranges_need_selinux_in_the_guest(folder: Path) -> None:
    """Each of the three that only such a guest can keep is named; so is a service to confine."""
    found = problems(folder, CONFINED.replace("selinux", "minimal"))
    assert sorted(line for line, _ in found) == [4, 6, 11]
    assert all("needs SELinux in the guest" in words for _, words in found)
    found = problems(
        folder, CONFINED.replace("start =", "packages =").replace("/usr/local/bin/", "")
    )
    assert found == [(4, "confine is about what start runs, and there is none")]

"""Lines of keys in a TOML document, compared with what tomllib reads."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import InputError
from skerry.system.toml_lines import MAX_DEPTH, Path, key_line, parse_toml

TEXT = '''\
name = "x"
"quoted.key" = 1
a.b . "c" = [
  1, # a ] in a comment
  { p = "]", q.r = [ [2],
     3 ] },
]
long = """
[not.a.header]
k = 1 \\""" """""
raw = \'\'\'
[[neither]]\'\'\'\'
when = 1979-05-27 07:32:00Z

[t.u.v]
k = 'it'
[t.u]
k = 2
[[channels]]
from = "a"
[[channels]]
from = "b"
  [channels.more]
  k = 3
  [[channels.sub]]
  k = 4
'''


def test_every_form_has_its_line() -> None:
    """Dotted, quoted, multi-line, inline and array forms each get the line where they stand."""
    tomllib.loads(TEXT)
    expected: dict[Path, str] = {
        ("name",): 'name = "x"',
        ("quoted.key",): '"quoted.key" = 1',
        ("a",): 'a.b . "c" = [',
        ("a", "b", "c"): 'a.b . "c" = [',
        ("a", "b", "c", 0): "  1, # a ] in a comment",
        ("a", "b", "c", 1): '  { p = "]", q.r = [ [2],',
        ("a", "b", "c", 1, "q", "r", 1): "     3 ] },",
        ("long",): 'long = """',
        ("raw",): "raw = '''",
        ("when",): "when = 1979-05-27 07:32:00Z",
        ("t",): "[t.u.v]",
        ("t", "u"): "[t.u]",
        ("t", "u", "k"): "k = 2",
        ("channels", 1): "[[channels]]",
        ("channels", 1, "from"): 'from = "b"',
        ("channels", 1, "more", "k"): "  k = 3",
        ("channels", 1, "sub", 0, "k"): "  k = 4",
    }
    rows = TEXT.split("\n")
    assert {path: rows[key_line(TEXT, path) - 1] for path in expected} == expected
    assert key_line(TEXT, ("channels", 0)) < key_line(TEXT, ("channels", 1))


def test_a_missing_path_has_the_line_around_it() -> None:
    """A key that is not there is reported at its table; the document itself has line 0."""
    text = "x = 1\n[domains.a]\nimage = 'm'\n"
    assert key_line(text, ("domains", "a", "label")) == 2
    assert key_line(text, ("name",)) == 0


@pytest.mark.parametrize("text", ["a = ", "a = 1\nb = [1,\n\n", "[a\n", "=", '"\\q" = 1', "a = {"])
def test_what_is_no_toml_is_an_input_error_with_a_line(text: str) -> None:
    """A syntax error names the file and a line, and the scanner alone never hangs or raises."""
    key_line(text, ("a",))
    with pytest.raises(InputError) as caught:
        parse_toml(text, "f.toml")
    assert caught.value.problems[0].file == "f.toml"
    assert caught.value.problems[0].line >= 1


@pytest.mark.parametrize(
    "text",
    [
        "\nx = " + "[" * 100_000,
        "\n" + "a." * 100_000 + "b = 1",
        "\n[" + "a." * 100_000 + "b]",
        "\nx = " + "{a = " * 100_000,
    ],
)
def test_depth_is_bounded(text: str) -> None:
    """A document deeper than the limit is refused at its line, whatever form the depth has."""
    with pytest.raises(InputError, match=f"f.toml:2: nested deeper than {MAX_DEPTH}"):
        parse_toml(text, "f.toml")
    assert parse_toml("\nx = " + "[" * 30 + "]" * 30, "f.toml").line(("x",)) == 2


KEYS = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,4}", fullmatch=True),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=4),
)
SCALARS = st.one_of(
    st.integers(-99, 99).map(str),
    st.sampled_from(["true", "1.5", "1979-05-27 07:32:00Z", "'lit # ]'", '"a\\"}] #"']),
    st.sampled_from(
        ['"""\n[x]\nk = 1\n"""', "'''\n[[y]]\n''''", '"""a\\"""\n"""""', '""', "''''''"]
    ),
)


def _quote(key: str) -> str:
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return key if key.isascii() and key.replace("-", "").isalnum() else f'"{escaped}"'


@st.composite
def _values(draw: st.DrawFn, depth: int = 2) -> str:
    form = draw(st.sampled_from(["scalar", "array", "inline"])) if depth else "scalar"
    if form == "scalar":
        return draw(SCALARS)
    if form == "array":
        gap = draw(st.sampled_from(["", " ", "\n", " # ] , [\n"]))
        items = draw(st.lists(_values(depth=depth - 1), max_size=3))
        return "[" + gap + f",{gap}".join(item + gap for item in items) + "]"
    keys = draw(st.lists(KEYS, max_size=3, unique=True))
    return "{" + ",".join(f"{_quote(k)} = {draw(_values(depth=depth - 1))}" for k in keys) + "}"


@st.composite
def _documents(draw: st.DrawFn) -> str:
    def pairs() -> list[str]:
        keys = draw(st.lists(st.lists(KEYS, min_size=1, max_size=3), max_size=4))
        return [f"{' . '.join(map(_quote, key))} = {draw(_values())}" for key in keys]

    rows = pairs()
    for _ in range(draw(st.integers(0, 4))):
        header = ".".join(map(_quote, draw(st.lists(KEYS, min_size=1, max_size=3))))
        rows += [draw(st.sampled_from(["[{}]", "[[{}]]", " [ {} ] # x"])).format(header), *pairs()]
    return draw(st.sampled_from(["\n", "\r\n", "\n\n# c\n"])).join(rows)


def _paths(value: object, path: Path = ()) -> set[Path]:
    found = {path}
    if isinstance(value, dict):
        for key, part in value.items():
            found |= _paths(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            found |= _paths(part, (*path, index))
    return found


@given(_documents())
def test_the_scanner_sees_exactly_what_tomllib_sees(text: str) -> None:
    """For every valid document the paths with a line are the paths that tomllib reads."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    document = parse_toml(text, "f")
    assert document.data == data
    assert set(document.lines) == _paths(data) - {()}


@given(st.integers(0, 30), st.integers(0, 30), KEYS)
def test_the_line_is_where_the_key_was_put(before: int, after: int, key: str) -> None:
    """A key written on a known line, among multi-line values, is reported on that line."""
    filler = [f'before{i} = """\n\n{i}"""' for i in range(before)]
    rows = [*filler, f"{_quote(key)} = 1", *(f"after{i} = [\n1]" for i in range(after))]
    line = sum(row.count("\n") + 1 for row in filler) + 1
    assert key_line("\n".join(rows), (key,)) == line


@given(st.text(max_size=60))
def test_any_text_ends(text: str) -> None:
    """No text makes the scanner raise or run on."""
    assert key_line(text, ("a", 0)) >= 0

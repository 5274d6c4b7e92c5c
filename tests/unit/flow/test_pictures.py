"""The picture of the README: what the command draws today, whatever Graphviz places where."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from click.testing import CliRunner

from skerry.cli.flow import flow

ROOT = Path(__file__).parents[3]
SVG = "{http://www.w3.org/2000/svg}"


def meaning(content: str) -> dict[str, tuple[str, list[str], list[str], int]]:
    """Return, by its title, what each box and arrow says, how it is coloured, and its heads."""
    found = {}
    for group in ElementTree.fromstring(content).iter(f"{SVG}g"):
        kind = group.get("class", "")
        if kind in ("node", "edge"):
            texts = [text.text or "" for text in group.iter(f"{SVG}text")]
            paths = list(group.iter(f"{SVG}path"))
            colours = [path.get("fill", "") + path.get("stroke", "") for path in paths]
            heads = len(list(group.iter(f"{SVG}polygon")))
            title = group.find(f"{SVG}title")
            assert title is not None
            found[str(title.text)] = kind, texts, colours, heads
    return found


def test_the_picture_in_the_readme_is_what_the_command_draws(tmp_path: Path) -> None:
    """Every domain, channel, colour and arrow head of the two banks; not where they lie."""
    made = tmp_path / "made.svg"
    system = str(ROOT / "examples/two-banks/system.toml")
    result = CliRunner().invoke(flow, ["graph", "--system", system, "--svg", str(made)])
    assert result.exit_code == 0, result.exception
    drawn = meaning(made.read_text(encoding="utf-8"))
    assert drawn == meaning((ROOT / "docs/two-banks.svg").read_text(encoding="utf-8"))
    kinds = [kind for kind, *_ in drawn.values()]
    assert (kinds.count("node"), kinds.count("edge")) == (5, 4)
    assert {heads for kind, *_, heads in drawn.values() if kind == "edge"} == {2}

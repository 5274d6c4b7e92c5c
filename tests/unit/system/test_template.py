"""Which domains of a system file can begin from a template."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.system.load import parse_system

GOOD = """\
name = "t"
policy = "dummy"
[domains.a]
label = "a"
template = true
[node]
share-templates-across-labels = true
"""
TPM = 'uses = ["chip"]\n[resources.chip]\nkind = "tpm"\nlabel = "a"\n'


def test_a_template_is_asked_for_by_name_and_shared_by_name() -> None:
    """Both are off where the file does not say."""
    system = parse_system(GOOD, Path("/t.toml"))
    assert (system.domains["a"].template, system.share_templates) == (True, True)
    plain = parse_system(GOOD.split("template", maxsplit=1)[0], Path("/t.toml"))
    assert (plain.domains["a"].template, plain.share_templates) == (False, False)


@pytest.mark.parametrize(
    ("new", "line", "words"),
    [
        ('template = true\nmachine = "simulator"', 5, "only a QEMU that boots"),
        ("template = true\n" + TPM, 5, "a domain with a TPM has no template"),
        ('template = "yes"', 5, "template must be"),
        ("template = true\n[node]\nother = 1", 7, "other"),
    ],
)
def test_what_has_no_template_is_said_at_its_line(new: str, line: int, words: str) -> None:
    """A simulated domain, one with a TPM, a value that is none, an unknown key."""
    text = GOOD.split("template", maxsplit=1)[0] + new + "\n"
    with pytest.raises(InputError) as caught:
        parse_system(text, Path("/t.toml"))
    [problem] = caught.value.problems
    assert (problem.line, words in problem.message) == (line, True), problem


def test_firmware_has_none(tmp_path: Path) -> None:
    """What boots a disk of its own is not ours to save."""
    text = GOOD.split("[node]", maxsplit=1)[0] + 'boot = "bios"\nuses = ["d"]\n'
    text += '[resources.d]\nkind = "disk"\nlabel = "a"\nfile = "d"\n'
    with pytest.raises(InputError, match="only a QEMU that boots the kernel"):
        parse_system(text, tmp_path / "t.toml")

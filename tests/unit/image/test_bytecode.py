"""The bytecode of an image: of every module, or there is no image."""

import sys
from pathlib import Path

import pytest

from skerry.errors import SkerryError
from skerry.image import bytecode, cpio
from skerry.image.tree import FILES, Tree


def test_every_module_below_the_folders_is_compiled_or_the_build_ends(tmp_path: Path) -> None:
    """What is no Python there is an error that says so; elsewhere it is nobody's business."""
    for name, source in (("good", b"x = 1\n"), ("bad", b"x = = 1\n")):
        tree = Tree(1 << 20)
        tree.add(cpio.file("app/a.py", source), FILES)
        tree.add(cpio.file("other/b.py", b"no Python"), FILES)
        (tmp_path / name).mkdir()
        if name == "bad":
            with pytest.raises(SkerryError, match="no valid Python"):
                bytecode.add_to(tree, ("app/",), tmp_path / name)
        else:
            bytecode.add_to(tree, ("app/",), tmp_path / name)
            assert [p for p in tree.placed if p.endswith(".pyc")] == [
                f"app/__pycache__/a.{sys.implementation.cache_tag}.pyc"
            ]

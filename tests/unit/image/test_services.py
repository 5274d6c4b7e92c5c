"""The images of the node's own domains: what a service needs is in them, and little else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.image.recipe import PRESETS, Recipe, parse_recipe, preset
from skerry.image.services import MAINS, PLACE, PYTHON, modules
from skerry.system.model import AUDIT_DOMAIN, MANAGER_DOMAIN

NEVER = ("skerry.monitor", "skerry.node", "skerry.control", "skerry.cli", "skerry.machine")
"""What drives a host, and no service needs."""


def laid_out(recipe: Recipe, root: Path) -> Path:
    """Copy the files of a recipe as they stand in its guest, and return where packages are."""
    for copied in recipe.files:
        target = root / copied.target
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(copied.source.read_bytes())
    return root / PLACE


@pytest.mark.parametrize("name", MAINS)
def test_a_service_finds_all_that_it_imports(name: str, tmp_path: Path) -> None:
    """In an interpreter that has nothing but its image's files and Python's library."""
    place = laid_out(preset(name), tmp_path)
    code = f"import sys; sys.path.append({str(place)!r}); import {MAINS[name]} as service"
    code += "; print(service.main.__module__, service.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [MAINS[name], str(place / MAINS[name].replace(".", "/")) + ".py"]


@pytest.mark.parametrize("name", MAINS)
def test_a_service_s_image_holds_no_module_that_drives_a_host(name: str) -> None:
    """Nor, for the replica, what decides."""
    found = modules(MAINS[name])
    assert not [module for module in found if module.startswith(NEVER)]
    assert any(module.startswith("skerry.xsm.acm") for module in found) is (name == MANAGER_DOMAIN)
    if name == AUDIT_DOMAIN:
        assert not [module for module in found if module.startswith("skerry.policy")]


@pytest.mark.parametrize("name", MAINS)
def test_a_service_s_image_is_a_preset_with_a_name_of_its_own(name: str, tmp_path: Path) -> None:
    """`up` builds it by itself; a recipe of that name is refused."""
    assert name in PRESETS
    recipe = preset(name)
    assert recipe.name == name
    assert recipe.start[0] == f"/usr/bin/{PYTHON}"
    with pytest.raises(InputError, match="a preset's name"):
        parse_recipe(f'name = "{name}"\n', tmp_path / "x.toml")

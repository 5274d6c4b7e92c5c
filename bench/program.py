"""Programs for guests, compiled from the C sources that lie beside the rows."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from skerry.errors import SkerryError

INSTALL = "gunzip > /tmp/{0} && chmod +x /tmp/{0}"
"""The script that takes a program of this name from its standard input, in a guest."""


@cache
def program(name: str) -> bytes:
    """Return a static program, compressed. Raises `SkerryError` without a compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise SkerryError("gcc is not installed", fix="apt-get install gcc libc6-dev")
    source = Path(__file__).parent / "rows" / f"{name}.c"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / name
        command = [compiler, "-O2", "-static", "-s", "-o", str(made), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        return gzip.compress(made.read_bytes())

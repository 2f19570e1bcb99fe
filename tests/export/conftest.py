"""An environment with versions that dasearch itself does not use."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PINNED = ("adapters==1.3.0", "transformers==4.57.6", "huggingface_hub<1", "tokenizers<0.23")
NO_INDEX = ("Retrying (", "NewConnectionError", "Temporary failure in name resolution")


@pytest.fixture(scope="session")
def adapterhub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the library and what it pins; torch and numpy are this environment's."""
    place = tmp_path_factory.mktemp("adapterhub")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--retries", "1", *PINNED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and any(sign in done.stderr + done.stdout for sign in NO_INDEX):
        pytest.skip("no package index answers, and the library is not a dependency")
    assert done.returncode == 0, done.stderr
    site = sysconfig.get_path("purelib", vars={"base": str(place)})
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python

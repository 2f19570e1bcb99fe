"""The version is known without an installation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import yaml

import dasearch
from dasearch.version import installed_version, installed_versions

ROOT = Path(__file__).parents[1]


def test_a_source_tree_without_metadata_is_imported(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dasearch", tmp_path / "dasearch", ignore=shutil.ignore_patterns("__pycache__"))
    absent = (
        "import importlib.metadata as m; found = m.version\n"
        "def version(name):\n"
        "    if name == 'dasearch': raise m.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "m.version = version\n"
        "import dasearch; from dasearch.version import installed_versions\n"
        "print(dasearch.__file__, dasearch.__version__, installed_versions(['dasearch', 'torch', 'nosuch-thing']))"
    )
    done = subprocess.run([sys.executable, "-c", absent], cwd=tmp_path, capture_output=True, text=True, check=True)
    said = f"{tmp_path}/dasearch/__init__.py {dasearch.__version__} {{'dasearch': '{dasearch.__version__}', 'torch': "
    assert done.stdout.startswith(said)


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "dasearch/version.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", dasearch.__version__)
    users = [path for path in (ROOT / "dasearch").rglob("*.py") if "importlib.metadata" in path.read_text()]
    assert users == [ROOT / "dasearch" / "version.py"]


def test_a_release_is_cited_by_its_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    assert ".dev" in dasearch.__version__ or cited == dasearch.__version__


def test_what_is_not_installed_has_none() -> None:
    assert installed_version("nosuch-thing") is None
    assert installed_versions(["torch"]) == {"torch": version("torch")}

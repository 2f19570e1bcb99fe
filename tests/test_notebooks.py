"""Every notebook runs to its end, offline and from any folder, and comes to what its text says."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SECONDS = 300  # for one cell, on a busy machine

CHECKS = {  # run at the end of the notebook, on its own variables
    "quickstart": """
        assert study.space().size == 64
        assert status.phase == "done" and len({trial.layout for trial in status.completed}) == 6
        assert [str(trial.layout) for trial in status.completed[:2]] == ["SSS-SSS", "PPP-PPP"]
        assert status.best.score == max(trial.score for trial in status.completed)
        assert {"winner", "popularity", "Markov"} <= {result.name for result in status.results}
        from dasearch.search.confirmation import winner_of
        assert model.layout == winner_of(status.results, status.standings, status.space)
        assert len(recommended) == 5 and all(one.title for one in recommended)
        """,
    "inspecting_a_study": """
        assert trials.height == 12 and len(set(trials["layout"])) == 12 and not status.results
        assert [epoch.number for epoch in epochs] == [0, 1]
        assert max(epoch.metrics["MRR"] for epoch in epochs) >= status.best.score
        assert [one.source for one in proposals].count("reparameterization") >= 4
        assert effects.height == 6 and interactions.height == 15 and all(sd > 0 for sd in effects["sd"])
        assert list(history.data[0].y) == [trial.score for trial in status.completed]
        assert len(curves.data) == 12 and all(len(curve.y) == 2 for curve in curves.data)
        assert sorted(importances.data[0].y) == sorted(free)
        """,
    "prsampler_in_optuna": """
        assert round(best_possible, 6) == 4.6
        assert statistics.mean(pr) > statistics.mean(random) + 0.5
        assert max(pr) <= best_possible + 1e-9
        assert all(len(study.trials) == 30 for study in (*with_pr, *with_random))
        """,
    "your_own_data": """
        assert (counted.users, counted.items, counted.tied_last) == (150, 60, 0.0)
        assert statistics(from_table).interactions == counted.interactions == len(events)
        assert status.phase == "done" and len(status.completed) == 6
        assert ndcg["Markov"] > ndcg["popularity"]
        assert len(recommended) == 3 and all(one.title in teas for one in recommended)
        """,
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_here() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(CHECKS)


def code_cells(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", CHECKS)
def test_outputs_are_stored_and_small(name: str) -> None:
    outputs = [output for cell in code_cells(name) for output in cell.outputs]
    assert len(outputs) >= 3, "run notebooks/save.py"
    assert all(output.output_type in ("stream", "execute_result") for output in outputs)
    stored = str(outputs)
    for stray in ("Warning", "application/vnd.plotly", "/tmp/", str(Path.home()), "it/s]", r"\x1b"):
        assert stray not in stored, f"{stray} in an output; run notebooks/save.py"
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 40_000


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_is_silenced_and_only_public_packages_are_imported(name: str) -> None:
    code = "\n".join(cell.source for cell in code_cells(name))
    nodes = list(ast.walk(ast.parse(code)))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    own = {module for module in modules if module and module.split(".")[0] == "dasearch"}
    assert own
    assert own <= {"dasearch", "dasearch.bayes", "dasearch.data", "dasearch.models"}
    assert "warnings" not in modules
    assert not any(module and ".logging" in f"{module}." for module in modules)
    assert "set_verbosity" not in code


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_runs_to_its_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    for variable in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(temporary))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(name)
    lines = [line.strip() for line in CHECKS[name].strip().splitlines()]
    notebook.cells.append(new_code_cell("\n".join(lines)))
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(here)}}).execute()
    assert not list(here.iterdir())  # whatever was written is in the temporary folder

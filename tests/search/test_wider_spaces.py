"""A search over more than serial and parallel: trained, confirmed, reported, exported, opened, used as a prior."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from dasearch.errors import LayoutError, SearchSpaceError
from dasearch.export import export
from dasearch.layout import Layout
from dasearch.report.page import as_html, as_markdown
from dasearch.report.view import read_view
from dasearch.search.prior import prior_trials, trials_of
from dasearch.search.single import evaluate_saved, train_layout
from dasearch.search.store import open_store
from dasearch.search.study import Study
from dasearch.search_space import load_search_space
from dasearch.training.recommender import load
from tests.search.test_study import run
from tests.training.studies import small_study

WIDE = """
name: toy-wide
model: darec
sites: [causal, context, recommendation]
choices: {causal: [none, serial, thin], context: [parallel, none], recommendation: [serial, thin-parallel, parallel-sum]}
define:
  thin: {like: serial, letter: t, width: 2}
  thin-parallel: {like: parallel, letter: u, width: 3}
"""


@pytest.fixture
def space_file(tmp_path: Path) -> Path:
    file = tmp_path / "toy-wide.yaml"
    file.write_text(WIDE)
    return file


def test_a_search_over_widths_and_none(tmp_path: Path, space_file: Path) -> None:
    settings = small_study(
        tmp_path, space={"name": str(space_file)}, model={"bottleneck": 4}, search={"batch": 2, "budget": 5}
    )
    status, _ = run(settings)
    assert status.phase == "done"
    assert len({t.layout for t in status.completed}) == 5
    space = status.space
    assert space.size == (3 * 2 * 3) ** 2
    assert str(space.all_serial) == "SPS-SPS"  # the context site has no serial
    with closing(open_store(None, settings.output, create=False)) as store:
        view = read_view(store, settings.name)
        told = trials_of(store, settings.name)
        assert {str(c.layout) for c in store.confirmations(settings.name)} >= {"SPS-SPS"}
    assert {record.letter for record in told.choices} >= {"N", "t", "u", "A"}
    html, markdown = as_html(view), as_markdown(view)
    assert "thin-parallel" in html
    assert "instead of" in markdown
    (folder,) = [a.path for a in status.artifacts]
    opened = load(folder)
    record = json.loads((Path(folder) / "layout.json").read_text())
    assert record["schema_version"] == "1.2"
    assert {one["letter"] for one in record["choices"]} >= set(str(opened.layout)) - {"-"}


def test_a_layout_of_own_letters_trained_saved_opened_and_exported(tmp_path: Path, space_file: Path) -> None:
    settings = small_study(tmp_path, space={"name": str(space_file)}, model={"bottleneck": 4})
    folder, trained = train_layout(Study(settings), "tNu-SPA")
    opened = load(folder)
    assert (str(opened.layout), opened.layout) == ("tNu-SPA", trained.layout)
    assert evaluate_saved(opened) == trained.metrics
    tensors = opened.model.active_tensors(opened.layout)
    assert tensors["layers.0.causal_adapter.down.weight"].shape[0] == 2
    assert not [name for name in tensors if name.startswith(("layers.0.context_adapter", "layers.0.router"))]
    assert trained.parameters == opened.model.count_trained(opened.layout)
    for form in ("torch", "layout", "snippet"):
        export(opened, form, tmp_path / form)


def test_a_search_over_adapters_and_lora(tmp_path: Path) -> None:
    settings = small_study(tmp_path, space={"name": "darec-lora"}, model={"lora_rank": 3}, search={"budget": 6})
    status, _ = run(settings)
    assert status.phase == "done"
    assert any("L" in str(trial.layout) for trial in status.completed)
    with closing(open_store(None, settings.output, create=False)) as store:
        view = read_view(store, settings.name)
        assert "lora" in as_html(view)
        assert {record.lora for record in trials_of(store, settings.name).choices} == {True, False}


def test_a_search_over_e4s_rec_s_adapters_and_lora(tmp_path: Path) -> None:
    settings = small_study(
        tmp_path, space={"name": "e4s-rec-lora"}, model={"kind": "e4s-rec", "lora_rank": 3}, search={"budget": 6}
    )
    status, _ = run(settings)
    assert status.phase == "done"
    assert any("L" in str(trial.layout) for trial in status.completed)
    folder, trained = train_layout(Study(settings), "LS-NN")
    opened = load(folder)
    assert opened.layout == trained.layout
    assert evaluate_saved(opened) == trained.metrics
    assert trained.parameters == opened.model.count_trained(opened.layout)
    assert json.loads((Path(folder) / "layout.json").read_text())["lora_rank"] == 3


def test_a_layout_with_lora_trained_saved_opened_and_exported(tmp_path: Path) -> None:
    """Of a space that has no LoRA too, where the letters ask for it."""
    for name in ("darec-lora", "darec"):
        settings = small_study(tmp_path / name, space={"name": name}, model={"lora_rank": 3})
        folder, trained = train_layout(Study(settings), "LSN-NLS")
        opened = load(folder)
        assert opened.layout == trained.layout
        assert evaluate_saved(opened) == trained.metrics
        tensors = opened.model.active_tensors(opened.layout)
        there = {n.rpartition(".")[0].rpartition(".")[0] for n in tensors if ".lora." in n}
        assert there == {
            f"layers.{at}.{part}" for at in ("0.lora.causal", "1.lora.context") for part in ("queries", "values")
        }
        assert trained.parameters == opened.model.count_trained(opened.layout)
        record = json.loads((Path(folder) / "layout.json").read_text())
        assert (record["lora_rank"], record["lora_alpha"]) == (3, 16.0)
        assert [one["lora"] for one in record["choices"] if one["letter"] == "L"] == [True]
        for form in ("torch", "layout", "snippet"):
            export(opened, form, tmp_path / name / form)


def test_lora_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    settings = small_study(tmp_path)
    with pytest.raises(LayoutError, match="layer 1 of SSL-SSS has lora at recommendation"):
        train_layout(Study(settings), "SSL-SSS")
    with pytest.raises(LayoutError, match="layer 2 of SSS-LSS has lora at injection"):
        train_layout(Study(small_study(tmp_path, model={"kind": "idle"})), "SSS-LSS")
    space = tmp_path / "thick.yaml"
    space.write_text(
        "name: thick\nmodel: darec\nsites: [causal, context, recommendation]\n"
        "choices: {causal: [serial, thick], context: [serial, none], recommendation: [serial, none]}\n"
        "define: {thick: {like: lora, letter: k, width: 9}}\n"
    )
    with pytest.raises(SearchSpaceError, match=r"'thick' of search space thick has rank 9 .* 8; set model.lora_rank=9"):
        Study(small_study(tmp_path, space={"name": str(space)})).run()


def test_another_spaces_trials_as_prior(tmp_path: Path) -> None:
    """A choice that the new space lacks becomes its nearest."""
    settings = small_study(tmp_path, space={"name": "darec-none"})
    run(settings, train=False)
    darec = load_search_space("darec", backbone_layers=2)
    with closing(open_store(None, settings.output, create=False)) as store:
        layouts = [Layout.parse(trial.layout) for trial in trials_of(store, settings.name).trials]
    found = prior_trials(str(Path(settings.output) / "dasearch.db"), darec)
    assert [trial.layout for trial in found] == [darec.nearest(layout) for layout in layouts]
    assert any("N" in str(layout) for layout in layouts)
    assert not any("N" in str(trial.layout) for trial in found)


def test_units_beyond_the_models_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    settings = small_study(tmp_path, space={"name": "darec-wide"}, model={"bottleneck": 32})
    with pytest.raises(
        SearchSpaceError, match=r"'serial-64' of search space darec-wide has 64 units .*set model.bottleneck=64"
    ):
        Study(settings).run()

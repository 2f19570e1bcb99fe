"""Settings searched besides the layout: which are allowed, which values are tried, and the trainings under the best ones."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from rich.console import Console

from dasearch.cli import run_command
from dasearch.config import StudySettings, changed, with_found
from dasearch.errors import LayoutError, StudyError
from dasearch.report.dashboard.numbers import numbers
from dasearch.report.dashboard.pages import proposal_tables, study_sections, trial_facts
from dasearch.report.dashboard.records import trial_row
from dasearch.report.figures import FIGURES
from dasearch.report.page import as_html, as_markdown
from dasearch.report.terminal import show_status
from dasearch.report.theme import LIGHT, words
from dasearch.report.view import read_view
from dasearch.search.domain import Domain, Point, briefly
from dasearch.search.prior import read_trials
from dasearch.search.store import open_store
from dasearch.search.study import Status, Study
from dasearch.training.recommender import load
from tests.search.test_batches_of_trials import Stops, stubbed
from tests.search.trainings import Stub, curve
from tests.training.studies import small_settings, small_study

LR = {"trial.lr": {"log": [1e-3, 1e-1]}}
BEST_LR = 1e-2


def study(folder: Path, also: Mapping[str, Any] = LR, **search: Any) -> StudySettings:
    return small_study(folder, search={"budget": 8, "batch": 2, "startup": 3, "also": dict(also), **search})


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """One learning rate is right: another costs more than any layout gains."""
    found = stubbed(monkeypatch)
    recipes: list[float] = []
    call = Stub.__call__

    def trained(self: Stub, settings: Any, materials: Any, candidates: Any, recipe: Any, **options: Any) -> Any:
        recipes.append(recipe.lr)
        self.curve = lambda layout, seed: [
            v - 0.2 * abs(json.loads(json.dumps(recipe.lr)) - BEST_LR) ** 0.5 for v in curve(layout, seed)
        ]
        return call(self, settings, materials, candidates, recipe, **options)

    monkeypatch.setattr(Stub, "__call__", trained)
    found.recipes = recipes  # type: ignore[attr-defined]
    return found


def test_what_a_key_may_hold() -> None:
    also = {
        "trial.lr": {"log": [1e-3, 1e-1]},
        "model.bottleneck": {"linear": [2, 8]},
        "losses.align": {"linear": [0, 1]},
        "trial.dropout": {"linear": [0, 0.5]},
        "model.activation": ["relu", "none"],
        "trial.batch_size": [4, 8],
    }
    found = small_settings(search={"also": also}).searched
    assert found == {
        "trial.lr": FloatDistribution(1e-3, 1e-1, log=True),
        "model.bottleneck": IntDistribution(2, 8),
        "losses.align": FloatDistribution(0.0, 1.0),
        "trial.dropout": FloatDistribution(0.0, 0.5),
        "model.activation": CategoricalDistribution(["relu", "none"]),
        "trial.batch_size": CategoricalDistribution([4, 8]),
    }


@pytest.mark.parametrize(
    ("also", "sentence"),
    [
        ({"data.max_items": [5, 10]}, "data.max_items cannot be searched; use settings of trial, model, losses"),
        ({"trial.epochs": [1, 2]}, "trial.epochs cannot be searched"),
        ({"trial.lrr": [1e-3, 1e-2]}, "unknown key trial.lrr; did you mean"),
        ({"trial.lr": {"log": [0, 1]}}, "positive if logarithmic"),
        ({"trial.lr": {"linear": [1, 0.5]}}, "a range is ascending"),
        ({"trial.lr": {"log": [1e-3, 1e-1], "linear": [0, 1]}}, "a range is"),
        ({"trial.lr": [1e-3]}, "two or more distinct values"),
        ({"trial.lr": 0.1}, r"trial.lr takes {log: \[FROM, TO\]}, .* \(got 0.1\)"),
        ({"trial.lr": {"lin": [1, 2]}}, "trial.lr takes {log: "),
        ({"trial.lr": {"log": [1e-3]}}, "trial.lr takes {log: "),
        (["trial.lr"], "give settings by key"),
        ({"trial.batch_size": {"linear": [4, 8.5]}}, "a range of whole numbers needs whole ends"),
        ({"trial.dropout": {"linear": [0, 1]}}, "trial.dropout: input should be less than 1"),
        ({"model.activation": ["relu", "tahn"]}, "model.activation"),
    ],
)
def test_other_keys_and_values_are_refused(also: Any, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        changed(small_settings(), {"search.also": also}, source="--set")


def test_settings_that_preparation_reads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"model\.cf_width is read once per study, before any training"):
        Study(study(tmp_path, {"model.cf_width": [4, 8]})).searched_space()
    both = {"pareto": ["mrr", "parameters"]}
    wider = small_study(
        tmp_path, space={"name": "darec-none"}, search={"objective": both, "also": {"model.bottleneck": [2, 4]}}
    )
    with pytest.raises(StudyError, match=r"model\.bottleneck may change what layouts cost"):
        Study(wider).searched_space()


def test_a_value_found_holds_for_the_final_training_where_both_recipes_begin_alike() -> None:
    settings = changed(small_settings(), {"final.weight_decay": 0.5}, source="--set")
    found = with_found(settings, {"trial.lr": 0.02, "trial.weight_decay": 0.1, "model.bottleneck": 2})
    assert (found.trial.lr, found.final.lr) == (0.02, 0.02)
    assert (found.trial.weight_decay, found.final.weight_decay) == (0.1, 0.5)
    assert found.model.bottleneck == 2


def test_rates_of_groups_are_searched_like_other_settings() -> None:
    study = small_settings(search={"also": {"trial.rates.adapters": {"log": [0.25, 4.0]}}})
    found = with_found(study, {"trial.rates.adapters": 2.0})
    assert (found.trial.rates, found.final.rates) == ({"adapters": 2.0}, {"adapters": 2.0})


def test_settings_are_shown_by_the_last_part_of_their_keys_where_that_is_enough() -> None:
    assert briefly({"trial.lr": 0.0031623, "model.bottleneck": 16}) == {"lr": "0.00316", "bottleneck": "16"}
    assert briefly({"trial.dropout": 0.1, "model.dropout": 0.2}) == {"trial.dropout": "0.1", "model.dropout": "0.2"}


def test_points_and_codes_undo_each_other(tmp_path: Path) -> None:
    settings = study(tmp_path, {**LR, "model.activation": ["relu", "none"]})
    domain = Domain.of(settings, Study(settings).space())
    assert domain.choices.sizes == (2,) * 6 + (9, 2)
    params = dict.fromkeys(domain.space.free, "parallel") | {"trial.lr": 1e-1, "model.activation": "relu"}
    point = domain.point(params)
    assert (str(point.layout), point.values) == ("PPP-PPP", (1e-1, "relu"))
    assert domain.codes([point]).tolist() == [[1] * 6 + [8, 0]]
    assert domain.holds(params)
    assert not domain.holds({**params, "trial.lr": 5.0})
    assert not domain.holds(dict.fromkeys(domain.space.free, "parallel"))


def test_each_batch_has_one_recipe_and_the_right_one_is_found(tmp_path: Path, stub: Stub) -> None:
    settings = study(tmp_path, budget=16)
    status = Study(settings).run(train=False)
    assert len(status.completed) == 16
    assert [len(together) for together in stub.batches] == [2] * 8
    by_batch = [status.completed[k : k + 2] for k in range(0, 16, 2)]
    assert all(a.settings == b.settings for a, b in by_batch)
    assert [a.settings["trial.lr"] for a, _ in by_batch] == stub.recipes  # type: ignore[attr-defined]
    assert len({(t.layout, *t.settings.items()) for t in status.completed}) == 16
    assert status.settings_found["trial.lr"] == pytest.approx(BEST_LR, rel=0.8)
    assert status.best is not None
    assert status.best.settings == status.settings_found


def test_an_interrupted_search_goes_on_the_same(tmp_path: Path, stub: Stub) -> None:
    def told(folder: Path, stops: tuple[tuple[int, int | None], ...]) -> list[Any]:
        folder.mkdir()
        for place, epoch in stops:
            with pytest.raises(KeyboardInterrupt):
                Study(study(folder)).run(train=False, listener=Stops(place, epoch))
        status = Study(study(folder)).run(train=False)
        return [(str(t.layout), t.settings, t.score) for t in status.completed]

    straight = told(tmp_path / "a", ())
    assert told(tmp_path / "b", ((3, 1), (6, 0), (7, None))) == straight


def test_every_layout_under_every_setting_is_evaluated_at_most_once(tmp_path: Path, stub: Stub) -> None:
    fixed = tmp_path / "space.yaml"
    fixed.write_text(
        "name: few\nmodel: darec\nsites: [causal, context, recommendation]\nchoices: [serial, parallel]\n"
        'fixed: {"layer01.*": serial, "*.causal": serial, "*.recommendation": serial}\n'
    )
    settings = small_study(
        tmp_path,
        space={"name": str(fixed)},
        search={"budget": 20, "batch": 3, "also": {"trial.lr": [1e-3, 1e-2, 1e-1]}},
    )
    status = Study(settings).run(train=False)
    assert len(status.completed) == 6
    assert len({(t.layout, *t.settings.items()) for t in status.completed}) == 6


def test_a_whole_run_trains_and_saves_with_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    also = {"trial.lr": {"log": [1e-3, 1e-1]}, "model.bottleneck": {"linear": [2, 5]}}
    settings = study(tmp_path, also, budget=6, startup=2)
    (tmp_path / "toy.yaml").write_text(settings.yaml())
    assert run_command(["run", "toy.yaml"]) == 0
    out = capsys.readouterr().out
    status = Study(settings).status()
    found = status.settings_found
    assert f"settings found: trial.lr={found['trial.lr']:.3g} model.bottleneck={found['model.bottleneck']}" in out
    saved = load(tmp_path / "runs" / "toy" / "model").settings
    assert saved.trial.lr == saved.final.lr == found["trial.lr"]
    assert saved.model.bottleneck == found["model.bottleneck"]
    layout_json = json.loads((tmp_path / "runs" / "toy" / "model" / "layout.json").read_text())
    assert layout_json["bottleneck"] == found["model.bottleneck"]
    for trial in status.completed:  # each with its own number of trained units
        assert trial.parameters is not None
    assert len({t.parameters for t in status.completed}) == len(
        {t.settings["model.bottleneck"] for t in status.completed}
    )
    assert run_command(["status", "toy", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings_found"] == found
    assert record["trials"][0]["settings"].keys() == also.keys()
    _a_narrow_terminal_shows_whole_numbers(status)
    _reports_show_settings(settings, found)
    _other_commands_follow(settings, found)


def _a_narrow_terminal_shows_whole_numbers(status: Status) -> None:
    shown = io.StringIO()
    show_status(Console(file=shown, width=80), status)
    assert "…" not in shown.getvalue()
    assert all(f"{trial.score:.4f}" in shown.getvalue() for trial in status.completed)
    assert all(f"{trial.settings['trial.lr']:.3g}" in shown.getvalue() for trial in status.completed)


def _reports_show_settings(settings: StudySettings, found: Mapping[str, Any]) -> None:
    with closing(open_store(None, settings.output, create=False)) as store:
        view = read_view(store, "toy")
    assert view.settings_found == found
    assert all(len(trial.epochs) == 2 for trial in view.trials)
    assert view.learned is not None
    assert [one.value for one in view.learned.settings if one.found] == list(found.values())
    assert [one.key for one in view.learned.settings].count("model.bottleneck") == 4
    assert len(view.learned.main) == 6
    assert all(len(effect.sites) == 2 for effect in view.learned.pairs)
    assert "Settings searched besides the layout" in as_markdown(view)
    assert "trial.lr=" in as_html(view)
    assert any("settings" in section.figures for section in study_sections(view))
    drawn = FIGURES["settings"].draw(view, LIGHT)
    assert [symbol for trace in drawn.data for symbol in trace.marker.symbol].count("star") == 2
    assert words(drawn).startswith("Under the best layout so far, trial.lr=")
    assert len(numbers(drawn, "settings").rows) == 9 + 4
    last = view.trials[-1]
    assert trial_row(last)["settings"].keys() == found.keys()
    assert any("trial.lr=" in row[1] for row in trial_facts(view, {"": last}).rows)
    assert proposal_tables(view, last)
    (optuna_study,) = optuna.get_all_study_names(f"sqlite:///{settings.output}/dasearch.db")
    assert optuna_study == "toy"


def _other_commands_follow(settings: StudySettings, found: Mapping[str, Any]) -> None:
    out = Path("best")
    assert run_command(["train", "toy.yaml", "--layout", "best", "--out", str(out)]) == 0
    assert load(out).settings.final.lr == found["trial.lr"]
    with pytest.raises(LayoutError, match="searched settings beside the layout"):
        read_trials(f"{settings.output}/dasearch.db:toy")


def test_the_command_that_goes_on_can_be_pasted(
    tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(study(tmp_path, {}, budget=2).yaml())
    given = ["run", "toy.yaml", "--no-train", "--set", "search.also={trial.lr: [0.01, 0.02]}"]
    assert run_command(given) == 0
    (printed,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next: dasearch resume"))
    words = shlex.split(printed.removeprefix("next: ").partition("   (")[0])
    assert words == ["dasearch", "resume", "toy", "--output", str(tmp_path / "runs")]
    assert run_command([*words[1:], "--no-train"]) == 0  # with the searched settings, which the command does not repeat


def test_another_study_s_trials_do_not_begin_it(tmp_path: Path, stub: Stub) -> None:
    settings = study(tmp_path)
    with pytest.raises(StudyError, match=r"have no values for search\.also"):
        Study(settings).run(train=False, warm_start=tmp_path / "any.json")


def test_the_best_values_are_those_of_the_best_posterior_mean(tmp_path: Path) -> None:
    settings = study(tmp_path, {"trial.lr": [1e-3, 1e-2]})
    space = Study(settings).space()
    domain = Domain.of(settings, space)
    layouts = [space.parse(text) for text in ("SSS-SSS", "PSS-SSS", "SPS-SSS", "SSP-SSS", "SSS-PSS", "SSS-SPS")]
    signals = {Point(layout, (lr,)): (0.1 if lr == 1e-2 else 0.05) for layout in layouts for lr in (1e-3, 1e-2)}
    signals[Point(layouts[0], (1e-3,))] = 0.101  # luck
    assert domain.best_values(signals) == (1e-2,)
    assert Domain.of(small_settings(), space).best_values({Point(layout): 0.1 for layout in layouts}) == ()

"""Whole studies on toy purchases: the loop, its memory, its guards."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from dasearch.bayes import PRSampler
from dasearch.config import StudySettings
from dasearch.data import LeaveOneOut
from dasearch.errors import SearchSpaceError, StoreError, StudyError, TestSplitError
from dasearch.layout import Layout
from dasearch.search.confirmation import contenders, controls, recommended, standings, t_interval
from dasearch.search.domain import Domain, Point
from dasearch.search.events import Finished, Listener, Listeners, Training
from dasearch.search.store import Confirmation, Store, open_store
from dasearch.search.store.locks import locked_in
from dasearch.search.study import Status, Study
from dasearch.search_space import SearchSpace, SearchSpaceFile
from dasearch.training.progress import Epoch
from dasearch.training.recommender import load
from tests.conftest import toy_dataset, write_folder
from tests.search.conftest import Uninterrupted
from tests.training.studies import small_study


class Ears(Listener):
    def __init__(self) -> None:
        self.trainings: list[str] = []
        self.finished_ones: list[Finished] = []

    def started(self, training: Training) -> None:
        self.trainings.append(f"{training.phase}/{training.label}/{training.layout}")

    def finished(self, finished: Finished) -> None:
        self.finished_ones.append(finished)


def run(settings: StudySettings, **options: Any) -> tuple[Status, Ears]:
    ears = Ears()
    return Study(settings).run(listener=ears, **options), ears


def test_what_of_the_data_is_left_out_is_heard_first(tmp_path: Path) -> None:
    class Stops(Listener):
        heard: tuple[str, ...] = ()

        def remarks(self, text: str) -> None:
            self.heard = (*self.heard, text)

        def says(self, text: str) -> None:
            if text == "loading the language model":
                raise StudyError("far enough")

    settings = small_study(tmp_path)
    with (tmp_path / "toy" / "interactions.tsv").open("a") as file:
        file.write("u1\tnowhere\t1\n")
    ears = Stops()
    with pytest.raises(StudyError, match="far enough"):
        Study(settings).run(listener=Listeners(ears))
    assert ears.heard == Study(settings).dataset().remarks
    assert "such as 'nowhere'; they are dropped" in ears.heard[0]


class Stops(Ears):
    """Hears remarks, and interrupts when the training at a place of a phase is over."""

    def __init__(self, phase: str = "", index: int = 0) -> None:
        super().__init__()
        self.stop, self.remarked = (phase, index), list[str]()

    def remarks(self, text: str) -> None:
        self.remarked.append(text)

    def finished(self, finished: Finished) -> None:
        if (finished.training.phase, finished.training.index) == self.stop:
            raise KeyboardInterrupt


def test_a_study_that_was_begun_says_once_where_it_goes_on(tmp_path: Path) -> None:
    settings = small_study(tmp_path, search={"batch": 1})
    stops = [
        (Stops("search", 2), []),
        (Stops("search", 4), ["study toy resumes at trial 3 of 4; 2 done"]),
        (
            Stops("confirmation", 2),
            ["study toy resumes with the confirmation, 0 of its trainings done; trials: 4 done"],
        ),
        (Stops("final", 1), ["study toy resumes with the confirmation, 2 of its trainings done; trials: 4 done"]),
    ]
    for listener, said in stops:
        with pytest.raises(KeyboardInterrupt):
            Study(settings).run(listener=listener)
        assert listener.remarked == said
    last = Stops()
    Study(settings).run(listener=last)
    assert last.remarked == ["study toy resumes with the final training, 1 of its trainings done; trials: 4 done"]
    done = Stops()
    Study(settings).run(listener=done)
    assert not done.remarked


def test_a_larger_budget_goes_on_with_the_search(tmp_path: Path) -> None:
    settings = small_study(tmp_path, search={"batch": 1})
    Study(settings).run(2, train=False)
    heard = Stops("search", 3)
    with pytest.raises(KeyboardInterrupt):
        Study(settings).run(3, train=False, listener=heard)
    assert heard.remarked == ["study toy resumes at trial 3 of 3; 2 done"]


def outcome(status: Status) -> list[Any]:
    trials = [(str(t.layout), t.score) for t in status.completed]
    return [trials, [(s.layout, s.score) for s in status.standings], status.results]


def test_the_whole_loop(tmp_path: Path) -> None:
    settings = small_study(tmp_path)
    status, ears = run(settings)
    assert status.phase == "done"
    assert len(status.completed) == 4
    assert len({t.layout for t in status.trials}) == 4
    assert [str(t.layout) for t in status.trials[:2]] == ["SSS-SSS", "PPP-PPP"]
    assert {"all-serial", "all-parallel"} <= {s.role for s in status.standings}
    assert all(s.seeds == 2 for s in status.standings)
    names = list(dict.fromkeys(r.name for r in status.results))
    trained = ["winner", "all-serial", "all-parallel", "llmrec", "darec-base"]
    assert names == [*trained, "GRU4Rec", "NCF", "popularity", "Markov"]
    assert all(r.low <= r.value <= r.high for r in status.results)
    first = [f for f in ears.finished_ones if f.training.phase == "search"]
    assert [f.training.index for f in first] == [1, 2, 3, 4]
    assert first[-1].best == max(t.score for t in status.completed)
    assert first[0].seconds_left > 0
    (model,) = [a.path for a in status.artifacts]
    recommender = load(model)
    assert recommender.layout == recommended(status.standings).layout
    assert recommender.layout_file.metric.split == "test"
    assert not (tmp_path / "runs" / "toy" / "checkpoints").exists()

    before = sorted(p.name for p in (tmp_path / "runs").rglob("*"))
    again, silence = run(settings)
    assert outcome(again) == outcome(status)
    assert not silence.trainings
    assert sorted(p.name for p in (tmp_path / "runs").rglob("*")) == before


def test_same_study_and_seed_give_the_same_numbers(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    first, _ = uninterrupted("darec")
    second, _ = run(small_study(tmp_path, output=str(tmp_path / "same")))
    other, _ = run(small_study(tmp_path, output=str(tmp_path / "other"), seed=1))
    assert outcome(first) == outcome(second)
    assert outcome(first) != outcome(other)


def test_proposals_and_epochs_are_kept(tmp_path: Path) -> None:
    settings = small_study(tmp_path, search={"batch": 3})
    status, _ = run(settings, train=False)
    store = open_store(None, settings.output, create=False)
    proposals = store.proposals("toy")
    assert [p.source for p in proposals] == ["startup"] * 3 + ["reparameterization"]
    assert proposals[-1].probabilities is not None
    epochs = store.epochs("toy", f"trial/{status.trials[0].layout}")
    assert [e.number for e in epochs] == [0, 1]
    assert epochs[0].losses["total"] > 0
    assert status.phase == "confirmation"
    assert not status.results
    store.close()


def test_optuna_reads_our_file(tmp_path: Path) -> None:
    settings = small_study(tmp_path)
    run(settings, train=False)
    found = optuna.load_study(study_name="toy", storage=f"sqlite:///{settings.output}/dasearch.db")
    assert len(found.trials) == 4
    assert set(found.trials[0].params) == {
        f"layer0{k}.{s}" for k in (1, 2) for s in ("causal", "context", "recommendation")
    }
    assert len(found.trials[0].intermediate_values) == 2


def test_a_larger_budget_goes_on_and_a_read_test_split_closes_the_search(tmp_path: Path) -> None:
    settings = small_study(tmp_path)
    short, _ = run(settings, train=False)
    longer, ears = run(settings, budget=6, train=False)
    assert outcome(longer)[0][:4] == outcome(short)[0]
    assert len(longer.completed) == 6
    assert sum(t.startswith("search") for t in ears.trainings) == 2
    straight, _ = run(small_study(tmp_path, output=str(tmp_path / "straight")), budget=6, train=False)
    assert outcome(straight)[0] == outcome(longer)[0]
    run(settings, budget=6)
    with pytest.raises(StudyError, match="has read its test split, so its search is closed; pass --set name=NEW"):
        run(settings, budget=7)


@pytest.mark.parametrize("phase", ["search", "confirmation", "final"])
def test_interrupted_anywhere_it_ends_the_same(tmp_path: Path, phase: str, uninterrupted: Uninterrupted) -> None:
    whole, output = uninterrupted("darec")

    class Interrupts(Ears):
        def epoch(self, training: Training, epoch: Epoch) -> None:
            if training.phase == phase and training.index == 2 and epoch.number == 0:
                raise KeyboardInterrupt

    settings = small_study(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Study(settings).run(listener=Interrupts())
    resumed, ears = run(settings)
    assert outcome(resumed) == outcome(whole)
    assert len(ears.trainings) == len(set(ears.trainings))
    assert later_trainings(tmp_path / "runs") == later_trainings(output)


def later_trainings(output: Path) -> list[tuple[str, int, int]]:
    """Run, place and total of each training after the search; batches of them ran one after another."""
    store = open_store(None, str(output), create=False)
    found = store.later_trainings("toy")
    done = {f"confirm/{c.seed}/{c.layout}" for c in store.confirmations("toy")}
    store.close()
    assert {one.run for one in found if one.phase == "confirmation"} == done
    batches = list(dict.fromkeys((one.began, one.ended) for one in found))
    moments = [moment for batch in batches for moment in batch]
    assert None not in moments
    assert moments == sorted(moments)
    return [(one.run, one.place, one.total) for one in found]


@pytest.mark.parametrize("call", [2, 3, 4])
def test_interrupted_between_checkpoint_and_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, uninterrupted: Uninterrupted
) -> None:
    """The epoch is in the checkpoint and nowhere else; the surrogate learns from every epoch, so it must be made good."""
    whole, output = uninterrupted("darec")
    settings, add, calls = small_study(tmp_path), Store.add_epoch, iter(range(1, 1000))

    def interrupted(self: Store, name: str, run: str, epoch: Epoch) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        add(self, name, run, epoch)

    monkeypatch.setattr(Store, "add_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Study(settings).run()
    resumed, _ = run(settings)
    assert outcome(resumed) == outcome(whole)
    store, reference = (open_store(None, str(folder), create=False) for folder in (tmp_path / "runs", output))
    for trial in whole.completed:
        lines = [[(e.number, e.metrics) for e in s.epochs("toy", f"trial/{trial.layout}")] for s in (store, reference)]
        assert lines[0] == lines[1]
        assert len(lines[0]) == 2
    store.close()
    reference.close()
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{settings.output}/dasearch.db")
    done = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert all(set(trial.intermediate_values) == {0, 1} for trial in done)


@pytest.mark.slow
def test_killed_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """SIGKILL: the process cannot clean up, and two trials are in its second batch."""
    settings = small_study(tmp_path, trial={"epochs": 3}, search={"batch": 2})
    whole, _ = run(settings.model_copy(update={"output": str(tmp_path / "whole")}))
    study_file = tmp_path / "toy.yaml"
    study_file.write_text(settings.yaml())
    script = "import sys; from dasearch.cli import run_command; sys.exit(run_command(['run', sys.argv[1]]))"
    process = subprocess.Popen([sys.executable, "-c", script, str(study_file)], stdout=subprocess.DEVNULL)
    try:
        _wait_for(tmp_path / "runs", process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    resumed, ears = run(settings)
    assert outcome(resumed) == outcome(whole)
    states = [t.state for t in resumed.trials]
    assert states.count("complete") == 4
    trained = [str(t.layout) for t in resumed.completed]
    assert len(set(trained)) == 4
    assert sum(t.startswith("search") for t in ears.trainings) < 4


def _wait_for(output: Path, process: subprocess.Popen[bytes]) -> None:
    """Until one batch is complete and the next one has its first checkpoint."""
    deadline, seen = time.monotonic() + 120, set()
    while time.monotonic() < deadline and process.poll() is None:
        seen |= {path.name for path in (output / "toy").glob("checkpoints/trial_*.safetensors")}
        if len(seen) > 2:  # of the two that train at a time; looking is cheap, so that no batch passes unseen
            return
        time.sleep(0.005)
    pytest.fail("the study never came to its second batch")


def test_search_never_sees_a_test_item(tmp_path: Path) -> None:
    """Other test items, the same search and confirmation, bit for bit."""
    dataset = toy_dataset(60, 40)
    changed = tuple(np.append(s[:-1], (s[-1] + 7) % 40) for s in dataset.sequences)
    found = []
    for name, sequences in (("plain", dataset.sequences), ("poisoned", changed)):
        source = write_folder(tmp_path / name / "toy", dataclasses.replace(dataset, sequences=sequences))
        found.append(run(small_study(tmp_path / name, data={"source": str(source)}), train=False)[0])
    assert outcome(found[0]) == outcome(found[1])


def test_the_test_split_is_opened_once_by_the_final_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = LeaveOneOut.open_test

    def watched(self: LeaveOneOut) -> Any:
        opened.append(sys._getframe(1).f_code.co_name)
        return original(self)

    monkeypatch.setattr(LeaveOneOut, "open_test", watched)
    run(small_study(tmp_path), train=False)
    assert not opened
    run(small_study(tmp_path))
    run(small_study(tmp_path))
    assert opened == ["evaluate_finally"]


def test_a_second_final_evaluation_is_refused() -> None:
    split = LeaveOneOut(toy_dataset())
    split.open_test()
    with pytest.raises(TestSplitError):
        split.open_test()


def test_an_enqueued_duplicate_is_not_trained_again(tmp_path: Path) -> None:
    settings = small_study(tmp_path)
    run(settings, budget=3, train=False)
    found = optuna.load_study(study_name="toy", storage=f"sqlite:///{settings.output}/dasearch.db")
    found.enqueue_trial(found.trials[0].params)
    status, ears = run(settings, budget=4, train=False)
    assert len(status.completed) == 4
    assert len({t.layout for t in status.completed}) == 4
    assert sum(t.startswith("search") for t in ears.trainings) == 1


def test_an_error_of_whoever_hears_is_none_of_the_training(tmp_path: Path) -> None:
    """It ends the run, and the trial resumes in the next."""
    settings = small_study(tmp_path, search={"batch": 1})
    broken: list[str] = []

    class Breaks(Ears):
        def epoch(self, training: Training, epoch: Epoch) -> None:
            if training.phase == "search" and training.index == 2:
                broken.append(str(training.layout))
                raise MemoryError

    with pytest.raises(MemoryError):
        Study(settings).run(listener=Breaks())
    status, _ = run(settings, train=False)
    assert len(status.completed) == settings.search.budget
    assert [t.state for t in status.trials if str(t.layout) == broken[0]] == ["fail", "complete"]


def test_a_partly_enqueued_trial_that_is_used_up_does_not_end_the_search(tmp_path: Path) -> None:
    settings = small_study(tmp_path)
    run(settings, budget=2, train=False)
    found = optuna.load_study(study_name="toy", storage=f"sqlite:///{settings.output}/dasearch.db")
    names = list(found.trials[0].params)
    held = dict.fromkeys(names[1:], "serial")
    for _ in range(3):
        found.enqueue_trial(held)
    status, _ = run(settings, budget=5, train=False)
    assert len(status.completed) == 5
    assert len({t.layout for t in status.completed}) == 5


def test_a_space_smaller_than_the_budget_ends(tmp_path: Path) -> None:
    space = tmp_path / "two.yaml"
    space.write_text(
        "name: two\nmodel: darec\nsites: [causal, context, recommendation]\n"
        'fixed: {"*.context": serial, "*.recommendation": parallel}\n'
    )
    settings = small_study(tmp_path, space={"name": str(space)}, search={"budget": 9})
    status, _ = run(settings, train=False)
    assert len(status.completed) == 4
    assert all(str(t.layout)[1] == "S" and str(t.layout)[2] == "P" for t in status.completed)


def test_diverging_trials_are_pruned_and_end_in_one_sentence(tmp_path: Path) -> None:
    settings = small_study(tmp_path, trial={"lr": 1e30, "clip": 1e30, "epochs": 5}, search={"budget": 1})
    with pytest.raises(Exception, match=r"trainings diverged or broke"):
        run(settings)


def test_what_a_running_study_may_not_change(tmp_path: Path) -> None:
    settings = small_study(tmp_path)
    run(settings, budget=1, train=False)
    with pytest.raises(StudyError, match=r"began with another trial\.lr; restore it or pass --set name=NEW"):
        run(small_study(tmp_path, trial={"lr": 1e-4}), budget=1)
    with pytest.raises(SearchSpaceError, match=r"another search space \(replace_every: 1 -> 2\)"):
        run(small_study(tmp_path, space={"replace_every": 2}), budget=1)
    status, _ = run(settings.model_copy(update={"threads": 2}), budget=1, train=False)  # as another device may
    assert len(status.completed) == 1
    assert torch.get_num_threads() == 1
    (tmp_path / "toy" / "interactions.tsv").write_text(
        (tmp_path / "toy" / "interactions.tsv").read_text().replace("item3\t", "item4\t")
    )
    with pytest.raises(StudyError, match="the data of study 'toy' changed"):
        run(settings, budget=1)


def test_two_processes_cannot_run_one_study(tmp_path: Path) -> None:
    settings = small_study(tmp_path)
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    with (
        locked_in(tmp_path / "runs" / "toy"),
        pytest.raises(StoreError, match="another process runs this study; watch it with `dasearch status`"),
    ):
        run(settings)


def test_variations_without_choices_cannot_be_searched(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"model\.variation=llmrec leaves nothing to search; use `dasearch train`"):
        run(small_study(tmp_path, model={"variation": "llmrec"}))
    assert not (tmp_path / "runs").exists()


def space(layers: int = 2, **changes: Any) -> SearchSpace:
    sites = {"name": "t", "model": "darec", "sites": ["causal", "context", "recommendation"]}
    return SearchSpace(SearchSpaceFile.model_validate({**sites, **changes}), layers)


def test_controls_lie_in_the_space() -> None:
    found = controls(space(fixed={"layer01.causal": "parallel"}), seed=0)
    assert [str(c.layout) for c in found[:2]] == ["PSS-SSS", "PPP-PPP"]
    assert len({c.layout for c in found}) == 3
    assert controls(space(), 1) == controls(space(), 1)


def test_contenders_follow_the_posterior_mean_and_contain_the_controls() -> None:
    """A lucky layout among bad neighbours yields to the middle of a good region."""
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for _ in range(28):
        layout = Layout.random(2, generator=generator)
        scores[Point(layout)] = 0.1 * sum(layout.z) + 0.02 * float(torch.randn((), generator=generator))
    scores[Point(Layout.parse("SSS-SSP"))] = 0.45
    found = contenders(Domain(space(), {}), scores, candidates=3, seed=0)
    assert "SSS-SSP" not in [str(c.layout) for c in found[:3]]
    assert {"all-serial", "all-parallel", "random"} <= {c.role for c in found}
    assert all(sum(c.layout.z) >= 4 for c in found[:3])


def test_gains_are_paired_by_seed() -> None:
    serial, other = Layout.parse("SSS"), Layout.parse("PSS")
    noise = [0.0, 0.3, -0.2]
    rows = [Confirmation(serial, "all-serial", s, {"MRR": 1 + n}, 1.0) for s, n in enumerate(noise)]
    rows += [Confirmation(other, "candidate", s, {"MRR": 1.1 + n}, 1.0) for s, n in enumerate(noise)]
    first, second = standings(rows, serial)
    assert (first.layout, second.layout) == (other, serial)
    assert first.gain.mean == pytest.approx(0.1)
    assert first.gain.high - first.gain.low == pytest.approx(0, abs=1e-9)
    assert first.score.high - first.score.low > 0.5
    assert second.gain is None


def test_t_interval() -> None:
    """Values 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.3027."""
    found = t_interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_store_refuses_what_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("these are notes, not a database, and they are long enough to be read as one " * 20)
    with pytest.raises(StoreError, match=r"notes\.db cannot be used as a study database \(file is not a database\)"):
        open_store(str(file), "runs", create=True)
    assert file.read_text().startswith("these are notes")
    with pytest.raises(StoreError, match="not a database URL"):
        open_store("nosuch://x", "runs", create=True)
    with pytest.raises(StoreError, match="there is no database"):
        open_store(str(tmp_path / "absent.db"), "runs", create=False)
    with pytest.raises(StoreError, match=r"there are no studies under .* yet; start one with `dasearch run`"):
        open_store(None, str(tmp_path / "none"), create=False)


def test_python_interface(tmp_path: Path) -> None:
    import dasearch

    settings = small_study(tmp_path)
    path = tmp_path / "toy.yaml"
    path.write_text(settings.yaml())
    status = dasearch.Study.load(path, ["search.confirm_seeds=2"]).run(budget=3)
    recommender = dasearch.load(status.artifacts[0].path)
    found = recommender.recommend(["item1", "item2"], k=5)
    assert len(found) == 5
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    assert json.loads((Path(status.artifacts[0].path) / "layout.json").read_text())["study"] == "toy"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dasearch.nothing  # noqa: B018


def test_sampler_is_told_the_whole_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trial, the first one too, is sampled as a whole, never parameter by parameter."""
    drawn: list[str] = []
    original = PRSampler.sample_independent

    class Watched(PRSampler):
        def sample_independent(self, *args: Any) -> Any:
            drawn.append(args[2])
            return original(self, *args)

    monkeypatch.setattr("dasearch.search.loop.PRSampler", Watched)
    run(small_study(tmp_path), budget=2, train=False)
    assert not drawn

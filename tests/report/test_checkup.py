"""What `dasearch doctor STUDY` finds of studies that are made to lack things, and what it mends."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import optuna
import pytest
import torch

from dasearch.errors import NoStudies, StoreError
from dasearch.folders import sha256, unfinished_name
from dasearch.layout import Layout
from dasearch.report import checkup
from dasearch.report.checkup import Check, StoredStudy, checks, examine_study, mend, mend_study
from dasearch.search.executors.places import BUNDLES
from dasearch.search.store import Artifact, PostSearchTraining, Store, open_store
from dasearch.search.store.engines import shown
from dasearch.search.store.locks import locked_in
from dasearch.search.study import Study
from dasearch.training.checkpoints import save_tensors
from tests.report.stored import NAME, empty_study, evaluate, optuna_study
from tests.report.views import space
from tests.training.studies import small_study

LONG_AGO = 3600  # seconds


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(empty_study(tmp_path)) as made:
        yield made


def ask(store: Store, layout: str, *, silent: bool) -> int:
    """A running trial with a heartbeat now or an hour ago; returns its number."""
    study = optuna_study(store)
    study.enqueue_trial(space().encode(Layout.parse(layout)))
    names = optuna.distributions.CategoricalDistribution(("serial", "parallel"))
    trial = study.ask(dict.fromkeys(space().free, names))
    study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    if silent:
        with sqlite3.connect(shown(store.url)) as connection:
            connection.execute(
                "update trial_heartbeats set heartbeat = datetime(heartbeat, '-1 hour') where trial_id = ?",
                (trial._trial_id,),
            )
    return trial.number


def leave(folder: Path, name: str, *, ago: float = LONG_AGO, damaged: bool = False) -> Path:
    """A checkpoint, written so many seconds ago."""
    path = folder / name
    save_tensors(path, {"parameter/x": torch.arange(4.0)}, {"progress": {}})
    if damaged:
        path.write_bytes(path.read_bytes()[:-3])
    os.utime(path, (time.time() - ago,) * 2)
    return path


def found(store: Store, folder: Path) -> dict[str, Check]:
    return {one.name: one for one in checks(StoredStudy(store, NAME, folder / NAME))}


def test_a_study_that_has_just_begun(store: Store, tmp_path: Path) -> None:
    seen = found(store, tmp_path)
    assert list(seen) == ["database", "trials", "checkpoints", "for workers", "saved model", "versions", "disk"]
    assert all(one.good for one in seen.values())
    assert seen["database"].says.endswith(f"optuna {optuna.__version__}")
    assert (seen["trials"].says, seen["checkpoints"].says) == ("none runs", "none")


def test_lost_trials_go_back_to_the_queue(store: Store, tmp_path: Path) -> None:
    evaluate(store, "SSS-SSS", 0.2)
    lost, alive = ask(store, "SPS-PPS", silent=True), ask(store, "PPP-SSS", silent=False)
    seen = found(store, tmp_path)["trials"]
    assert not seen.good
    assert f"over 60 s of {lost};" in seen.says
    before = {trial.number: trial for trial in store.trials(NAME)}

    assert mend(StoredStudy(store, NAME, tmp_path / NAME)) == [f"returned trial {lost} to the queue"]
    after = {trial.number: trial for trial in store.trials(NAME)}
    (queued,) = set(after) - set(before)
    assert (after[lost].state, after[queued].state, after[queued].retry_of) == ("fail", "waiting", lost)
    assert after[queued].params == before[lost].params == space().encode(Layout.parse("SPS-PPS"))
    assert all(after[number] == before[number] for number in (0, alive))
    assert found(store, tmp_path)["trials"] == Check("trials", good=True, says="1 run, all with a heartbeat")
    assert mend(StoredStudy(store, NAME, tmp_path / NAME)) == []


def test_a_lost_trial_that_was_not_asked_to_its_end_is_only_ended(store: Store, tmp_path: Path) -> None:
    study = optuna_study(store)
    trial = study.ask()
    with sqlite3.connect(shown(store.url)) as connection:
        connection.execute("update trials set datetime_start = datetime(datetime_start, '-1 hour')")
    mend(StoredStudy(store, NAME, tmp_path / NAME))
    assert [(t.number, t.state) for t in store.trials(NAME)] == [(trial.number, "fail")]


def confirmed(store: Store, seed: int, *, over: bool) -> None:
    """The training of a control with a fresh seed, begun and, if over, ended."""
    now = datetime.now(UTC)
    control = Layout.parse("PPP-PPP")
    training = PostSearchTraining(f"confirm/{seed}/PPP-PPP", "confirmation", "control", control, 1, 2, now)
    store.begin_training(NAME, training)
    if over:
        store.end_training(NAME, training.run, now)


def test_checkpoints_that_no_training_can_use_are_removed(store: Store, tmp_path: Path) -> None:
    evaluate(store, "SSS-SSS", 0.2)
    ask(store, "SPS-PPS", silent=False)
    confirmed(store, 1, over=True)
    confirmed(store, 2, over=False)
    folder = tmp_path / NAME / "checkpoints"
    kept = [
        leave(folder, "trial_SPS-PPS.safetensors"),
        leave(folder, "confirm_2_PPP-PPP.safetensors"),
        leave(folder, "final_PPP-PPP.safetensors"),  # read again if the study is killed before its end
        leave(folder, "trial_PSP-SSS.safetensors", ago=0),  # its trial may be about to be recorded
        leave(tmp_path / NAME / "models" / "checkpoints", "train_darec_SPS-PPS.safetensors"),
    ]
    orphaned = [
        leave(folder, "confirm_1_PPP-PPP.safetensors"),
        leave(folder, "trial_SSS-SSS.safetensors"),
        leave(folder, ".trial_SPS-PPS.safetensors-a1b2c3"),  # as earlier versions name it
        leave(folder, unfinished_name("trial_SPS-PPS.safetensors", "a1b2c3")),
    ]
    damaged = [
        folder / "empty.safetensors",
        leave(folder, "final_SSS-SSS.safetensors", damaged=True),
        leave(tmp_path / NAME / "ablation-checkpoints", "x.safetensors", damaged=True),
    ]
    for path in (damaged[0], folder / "notes.txt"):
        path.touch()

    seen = found(store, tmp_path)["checkpoints"]
    assert not seen.good
    assert all(f"{path} is damaged" in seen.says for path in damaged)
    assert all(f"{path} belongs to no unfinished training" in seen.says for path in orphaned)
    assert not any(str(path) in seen.says for path in kept)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    done = mend(StoredStudy(store, NAME, tmp_path / NAME))
    assert done == [
        *(f"removed {path}: damaged; its training starts over" for path in damaged),
        *(f"removed {path}: belongs to no unfinished training" for path in sorted(orphaned[:2]) + orphaned[2:]),
    ]
    gone = before - {path for path in tmp_path.rglob("*") if path.is_file()}
    assert gone == {*damaged, *orphaned}
    assert found(store, tmp_path)["checkpoints"].says == "5, all readable"


def test_of_a_study_that_is_done_no_checkpoint_is_needed(store: Store, tmp_path: Path) -> None:
    path = leave(tmp_path / NAME / "checkpoints", "final_PPP-PPP.safetensors")
    assert found(store, tmp_path)["checkpoints"].good
    store.enter_phase(NAME, "done")
    assert f"{path} belongs to no unfinished training" in found(store, tmp_path)["checkpoints"].says


def test_nothing_is_mended_while_the_study_runs(store: Store, tmp_path: Path) -> None:
    ask(store, "SPS-PPS", silent=True)
    path = leave(tmp_path / NAME / "checkpoints", "trial_SSS-SSS.safetensors")
    with locked_in(tmp_path / NAME), pytest.raises(StoreError, match="another process runs this study"):
        mend_study(NAME, output=str(tmp_path), storage=None)
    assert path.is_file()
    assert [trial.state for trial in store.trials(NAME)] == ["running"]


def test_what_was_prepared_for_workers_of_a_killed_driver_is_removed(store: Store, tmp_path: Path) -> None:
    """Files of a running study are kept."""
    bundle = tmp_path / NAME / BUNDLES / "abc" / "materials.safetensors"
    save_tensors(bundle, {"x": torch.arange(2.0)}, {})
    with locked_in(tmp_path / NAME):
        assert found(store, tmp_path)["for workers"].good
    wrong = found(store, tmp_path)["for workers"]
    assert not wrong.good
    assert wrong.says == f"{bundle.parents[1]} was left by a killed driver; --fix removes"
    assert f"removed {bundle.parents[1]}: left by a killed driver" in mend(StoredStudy(store, NAME, tmp_path / NAME))
    assert not bundle.parents[1].exists()
    assert found(store, tmp_path)["for workers"].good


def test_a_saved_model_that_is_gone_or_changed(store: Store, tmp_path: Path) -> None:
    model = tmp_path / NAME / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    store.finish(NAME, [], [Artifact("model", str(model), sha256(model))])
    assert found(store, tmp_path)["saved model"] == Check("saved model", good=True, says=f"{model}, as saved")
    (model / "config.json").write_text("{ }")
    changed = found(store, tmp_path)["saved model"]
    assert (changed.good, changed.says) == (
        False,
        f"{model} was modified since it was saved; restore it",
    )
    (model / "config.json").unlink()
    model.rmdir()
    assert f"{model} is missing; restore it" in found(store, tmp_path)["saved model"].says


def test_versions_count_while_the_study_goes_on(store: Store, tmp_path: Path) -> None:
    stored = store.begun(NAME)
    other = stored._replace(versions={"torch": "1.0", "optuna": version("optuna"), "no-such-thing": "2"})
    seen = checkup.check_versions(other)
    assert not seen.good
    assert f"it began with torch 1.0, here {version('torch')}; no-such-thing 2, here none: later" in seen.says
    assert checkup.check_versions(other._replace(phase="done")).good
    assert found(store, tmp_path)["versions"].says == "those it began with"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    for free, good in ((2**30 - 1, False), (2**30, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: usage(2**40, 0, free))
        assert checkup.check_disk(tmp_path / "not" / "yet").good is good
    assert not (tmp_path / "not").exists()


def test_damaged_databases(tmp_path: Path) -> None:
    database = tmp_path / "dasearch.db"
    with pytest.raises(NoStudies):
        examine_study(NAME, output=str(tmp_path), storage=None)
    store = empty_study(tmp_path)
    evaluate(store, "SSS-SSS", 0.2)
    with pytest.raises(StoreError, match="there is no study 'other'"):
        examine_study("other", output=str(tmp_path), storage=None)
    assert all(one.good for one in examine_study(NAME, output=str(tmp_path), storage=None))
    store.close()
    with sqlite3.connect(database) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
        (root,) = connection.execute("select rootpage from sqlite_master where name = 'trial_params'").fetchone()
        (size,) = connection.execute("pragma page_size").fetchone()
    content = bytearray(database.read_bytes())
    content[(root - 1) * size : (root - 1) * size + 64] = b"\xff" * 64
    database.write_bytes(content)
    (only,) = examine_study(NAME, output=str(tmp_path), storage=None)
    assert (only.name, only.good) == ("database", False)
    assert only.says.endswith("; restore a copy of it")
    assert mend_study(NAME, output=str(tmp_path), storage=None) == []
    assert database.read_bytes() == content
    database.write_bytes(b"no database at all" * 1000)
    (only,) = examine_study(NAME, output=str(tmp_path), storage=None)
    assert "file is not a database" in only.says


def test_tables_of_another_optuna(store: Store) -> None:
    with sqlite3.connect(shown(store.url)) as connection:
        connection.execute("update version_info set schema_version = 99")
        connection.execute("update alembic_version set version_num = 'v99.0.0.a'")
    assert "optuna" in (store.damage() or "")


KILLED = """
import os, sys
from dasearch.search.events import Listener
from dasearch.search.study import Study

class Killer(Listener):
    def epoch(self, training, epoch):
        if training.index == 3:
            os._exit(9)

Study.load(sys.argv[1]).run(train=False, listener=Killer())
"""


def test_a_killed_study_that_was_mended_goes_on_as_if_nothing_was(tmp_path: Path) -> None:
    settings = small_study(tmp_path, search={"batch": 1})
    whole = Study(settings.model_copy(update={"output": str(tmp_path / "whole")})).run(train=False)
    (tmp_path / "toy.yaml").write_text(settings.yaml())
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "toy.yaml")], capture_output=True)
    assert killed.returncode == 9
    folder = tmp_path / "runs" / "toy"
    assert len(list((folder / "checkpoints").glob("trial_*"))) == 1
    leave(folder / "checkpoints", "trial_XXX-XXX.safetensors")
    with sqlite3.connect(tmp_path / "runs" / "dasearch.db") as connection:
        connection.execute("update trial_heartbeats set heartbeat = datetime(heartbeat, '-1 hour')")

    where = {"output": settings.output, "storage": None}
    assert [one.name for one in examine_study("toy", **where) if not one.good] == ["trials", "checkpoints"]
    assert len(mend_study("toy", **where)) == 2
    assert all(one.good for one in examine_study("toy", **where))
    with closing(open_store(None, settings.output, create=False)) as store:
        (queued,) = (trial for trial in store.trials("toy") if trial.state == "waiting")
        assert list(queued.curve) == [0]  # it goes on from its first epoch
    resumed = Study(settings).run(train=False)
    assert {t.layout: t.score for t in resumed.completed} == {t.layout: t.score for t in whole.completed}
    assert resumed.standings == whole.standings

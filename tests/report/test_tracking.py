"""A study in TensorBoard, MLflow and Weights & Biases: the real packages, read back and compared with the database."""

from __future__ import annotations

import json
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dasearch.cli import run_command
from dasearch.config import StudySettings
from dasearch.errors import WrongUse
from dasearch.layout import Layout
from dasearch.report.tracking import STUDY, TRACKERS, Tracking, flat, markdown, open_tracker, run_name, track
from dasearch.search.events import CONFIRMATION, FINAL, SEARCH, Finished, Listener, Listeners, Training
from dasearch.search.store import Store, open_store
from dasearch.search.study import Status, Study
from dasearch.training.progress import Epoch
from tests.training.studies import small_settings, small_study

FLOAT32 = 1e-6  # TensorBoard's numbers


class Kept:
    """What a tracker has: points of each curve, facts, and tables of each run; runs of one name are joined."""

    def __init__(self) -> None:
        self.curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        self.facts: dict[str, dict[str, str]] = defaultdict(dict)
        self.tables: list[str] = []

    def points(self, run: str, name: str) -> tuple[list[int], list[float]]:
        found = sorted(self.curves[run][name])
        return [step for step, _ in found], [value for _, value in found]


def read_tensorboard(folder: Path) -> Kept:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = Kept()
    for path in {path.parent for path in (folder / "tensorboard").rglob("events.out.*")}:
        run = str(path.relative_to(folder / "tensorboard"))
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        for name in events.Tags()["scalars"]:
            kept.curves[run][name] += [(event.step, event.value) for event in events.Scalars(name)]
        texts = {n: events.Tensors(n)[0].tensor_proto.string_val[0].decode() for n in events.Tags()["tensors"]}
        rows = [line.strip("| ").split(" | ") for line in texts["facts/text_summary"].splitlines()[2:]]
        kept.facts[run] = {row[0]: row[1] for row in rows if len(row) == 2}
        kept.tables += [text for name, text in texts.items() if name == "test/text_summary"]
    return kept


def read_mlflow(folder: Path) -> Kept:
    from mlflow import MlflowClient

    client, kept = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}"), Kept()
    for found in client.search_runs([client.get_experiment_by_name("toy").experiment_id]):
        run = STUDY if found.info.run_name == "toy" else found.info.run_name
        for name in found.data.metrics:
            history = client.get_metric_history(found.info.run_id, name)
            kept.curves[run][name.replace("_at_", "@")] += [(point.step, point.value) for point in history]
        kept.facts[run] = found.data.params
        kept.facts[f"{run} {found.info.status}"] = found.data.tags
    kept.tables = [path.read_text() for path in (folder / "mlflow").rglob("test.md")]
    return kept


def read_wandb(folder: Path) -> Kept:
    from wandb.proto.wandb_internal_pb2 import Record

    kept = Kept()
    for path in (folder / "wandb").glob("offline-run-*/run-*.wandb"):
        run = ""
        for record in map(Record.FromString, leveldb_records(path.read_bytes())):
            if record.HasField("run"):
                assert record.run.run_group == "toy"
                run = STUDY if record.run.display_name == "toy" else record.run.display_name
                kept.facts[run] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            for name in row.keys() - {"step"} if "step" in row else ():
                kept.curves[run][name].append((row["step"], row[name]))
    kept.tables = [path.read_text() for path in (folder / "wandb").rglob("test_*.table.json")]
    return kept


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a LevelDB log in blocks of 32 KiB, with a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(log):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", log, at + 4)  # after a checksum
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full one, or the last part
            yield whole
            whole = b""


READ = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}


class Interrupts(Listener):
    """In the second trial, after its first epoch."""

    def epoch(self, training: Training, epoch: Epoch) -> None:
        if training.index == 2:
            raise KeyboardInterrupt


class Tracked(NamedTuple):
    name: str
    settings: StudySettings
    status: Status
    kept: Kept


@pytest.fixture(scope="module", params=TRACKERS)
def tracked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """A whole study with one tracker, interrupted once, and the tracker's records."""
    name = request.param
    pytest.importorskip(name, reason=f"{name} is not installed; pip install 'dasearch[{name}]'")
    settings = small_study(tmp_path_factory.mktemp(name), comparison={"seeds": 1})
    study = Study(settings)
    with closing(track(study, name, say=pytest.fail)) as listener, pytest.raises(KeyboardInterrupt):
        study.run(listener=Listeners(listener, Interrupts()))
    with closing(track(study, name, say=pytest.fail)) as listener:
        status = study.run(listener=listener)
    return Tracked(name, settings, status, READ[name](study.folder))


@pytest.fixture
def stored(tracked: Tracked) -> Iterator[Store]:
    store = open_store(None, tracked.settings.output, create=False)
    yield store
    store.close()


def test_each_epoch_of_each_trial_is_a_point(tracked: Tracked, stored: Store) -> None:
    for index, trial in enumerate(tracked.status.completed, start=1):
        epochs = stored.epochs("toy", f"trial/{trial.layout}")
        run = f"search/{index:03}-{trial.layout}"
        assert len(epochs) == 2
        for name in ("MRR", "NDCG@10", "Recall@10", "loss"):
            expected = [epoch.metrics[name] for epoch in epochs]
            assert tracked.kept.points(run, f"validation/{name}") == ([0, 1], pytest.approx(expected, rel=FLOAT32))
        for name in epochs[0].losses:
            expected = [epoch.losses[name] for epoch in epochs]
            assert tracked.kept.points(run, f"loss/{name}") == ([0, 1], pytest.approx(expected, rel=FLOAT32))
        assert tracked.kept.points(run, "score") == ([2], pytest.approx([trial.score], rel=FLOAT32))


def test_each_training_is_a_point_of_the_study(tracked: Tracked, stored: Store) -> None:
    kept, scores = tracked.kept, [trial.score for trial in tracked.status.completed]
    assert kept.points(STUDY, "search/MRR") == ([1, 2, 3, 4], pytest.approx(scores, rel=FLOAT32))
    best = list(accumulate(scores, max))
    assert kept.points(STUDY, "search/best") == ([1, 2, 3, 4], pytest.approx(best, rel=FLOAT32))
    seconds = [trial.seconds for trial in tracked.status.completed]
    assert kept.points(STUDY, "search/seconds")[1] == pytest.approx(seconds, rel=FLOAT32)
    confirmed = [one.metrics["MRR"] for one in stored.confirmations("toy")]
    assert kept.points(STUDY, "confirmation/MRR")[1] == pytest.approx(confirmed, rel=FLOAT32)
    assert len([run for run in kept.curves if run.startswith("confirmation/")]) == len(confirmed)
    final = [run for run in kept.curves if run.startswith("final/")]
    assert kept.points(STUDY, "final/MRR")[0] == list(range(1, len(final) + 1))
    assert len(final) >= 4  # all-serial, all-parallel and two variations, and the winner where it is another


def test_the_final_table(tracked: Tracked) -> None:
    assert tracked.status.results
    for result in tracked.status.results:
        name = f"test/{result.metric}/{result.name}"
        assert tracked.kept.points(STUDY, name) == ([0], pytest.approx([result.value], rel=FLOAT32))
    (table,) = tracked.kept.tables
    assert all(str(result.value) in table and result.name in table for result in tracked.status.results)


def test_layouts_and_settings_are_facts(tracked: Tracked) -> None:
    best = tracked.status.completed[-1]
    facts = tracked.kept.facts[f"search/004-{best.layout}"]
    assert best.layout is not None
    assert (facts["layout"], facts["phase"]) == (str(best.layout), "search")
    letters = {"serial": "S", "parallel": "P"}
    sites = [facts[f"layer0{k}.{site}"] for k in (1, 2) for site in ("causal", "context", "recommendation")]
    assert "".join(letters[choice] for choice in sites) == str(best.layout).replace("-", "")
    assert tracked.kept.facts[STUDY]["trial.lr"] == "0.005"


def test_tensorboard_lists_layouts_as_hyperparameters(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    tracker = open_tracker("tensorboard", small_study(tmp_path))
    tracker.begin("search/001-SP", {"layer01.causal": "serial"})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "runs" / "toy" / "tensorboard" / "search" / "001-SP")).Reload()
    found = events.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    assert metadata.parse_session_start_info_plugin_data(found).hparams["layer01.causal"].string_value == "serial"


def test_mlflow_nests_trainings_and_knows_what_was_killed(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    tracker = open_tracker("mlflow", small_study(tmp_path))
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    tracker.begin(STUDY, {})
    for run, failed in (("search/001", False), ("search/002", True)):
        tracker.begin(run, {})
        tracker.end(run, failed=failed)
    tracker.begin("search/003", {})
    tracker.close()
    kept = read_mlflow(tmp_path / "runs" / "toy")
    status = {name.rpartition(" ")[0]: name.rpartition(" ")[2] for name in kept.facts if " " in name}
    assert status == {STUDY: "FINISHED", "search/001": "FINISHED", "search/002": "FAILED", "search/003": "KILLED"}
    assert "mlflow.parentRunId" in kept.facts["search/003 KILLED"]


class Broken:
    """A tracker whose server is gone after the first training began."""

    def __init__(self, settings: StudySettings) -> None:
        self.told: list[str] = []

    def begin(self, run: str, facts: Mapping[str, str]) -> None:
        self.told.append(run)

    def log(self, run: str, numbers: Mapping[str, float], step: int) -> None:
        raise ConnectionError("the server\nis gone")

    def table(self, run: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.told.append("table")

    def end(self, run: str, *, failed: bool) -> None:
        self.told.append("end")

    def close(self) -> None:
        self.told.append("close")


def test_a_tracker_that_fails_is_said_once_and_loses_no_trial(tmp_path: Path) -> None:
    settings, said = small_study(tmp_path, search={"batch": 1}), []
    broken = Broken(settings)
    with closing(Tracking("mlflow", broken, Study(settings), said.append)) as listener:
        status = Study(settings).run(train=False, listener=listener)
    assert len(status.completed) == settings.search.budget
    assert said == ["mlflow failed (ConnectionError: the server is gone); the study continues without it"]
    assert broken.told == [STUDY, "search/001-SSS-SSS"]


def test_an_mlflow_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    tracking = Tracking(
        "mlflow", open_tracker("mlflow", small_study(tmp_path)), Study(small_study(tmp_path)), said.append
    )
    for _ in range(2):
        tracking.started(TRAINING)
    assert len(said) == 1
    assert said[0].startswith("mlflow failed (MlflowException: ")
    assert said[0].endswith("; the study continues without it")


TRAINING = Training(SEARCH, 3, 30, Layout.parse("SPS-PPS"), "trial", 2)


def test_a_diverged_training_failed_and_has_no_score() -> None:
    calls: list[tuple[Any, ...]] = []

    class Recorder(Broken):
        def log(self, run: str, numbers: Mapping[str, float], step: int) -> None:
            calls.append((run, dict(numbers), step))

        def end(self, run: str, *, failed: bool) -> None:
            calls.append((run, failed))

    study = Study(small_settings())
    tracking = Tracking("tensorboard", Recorder(study.settings), study, pytest.fail)
    tracking.finished(Finished(TRAINING, None, None, None, 2.5, 0.0))
    run = "search/003-SPS-PPS"
    assert calls == [(run, {"seconds/training": 2.5}, 2), (run, True), (STUDY, {"search/seconds": 2.5}, 3)]


def test_names_of_runs() -> None:
    assert run_name(TRAINING) == "search/003-SPS-PPS"
    confirmation = Training(CONFIRMATION, 4, 15, TRAINING.layout, "all-serial, seed 1", 2)
    assert run_name(confirmation) == "confirmation/004-all-serial-seed-1"
    final = Training(FINAL, 1, 15, TRAINING.layout, "winner = all-serial, seed 0", 2)
    assert run_name(final) == "final/001-winner-all-serial-seed-0"


def test_tables_as_markdown() -> None:
    assert markdown(("a", "b"), [("x|y", None)]) == "| a | b |\n| --- | --- |\n| x\\|y |  |"
    assert flat({"a": {"b": 1, "c": {"d": None}}}) == {"a.b": "1", "a.c.d": "None"}


def test_listeners_tell_everyone_everything() -> None:
    heard: list[str] = []

    class Ear(Listener):
        def __getattribute__(self, name: str) -> Any:
            return (lambda *_: heard.append(name)) if not name.startswith("_") else super().__getattribute__(name)

    events = [name for name in vars(Listener) if not name.startswith("_")]
    both = Listeners(Ear(), Ear())
    for name in events:
        getattr(both, name)(*[None] * (getattr(Listener, name).__code__.co_argcount - 1))
    assert heard == [name for name in events for _ in range(2)]


def test_unknown_and_uninstalled_trackers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(small_study(tmp_path))
    with pytest.raises(WrongUse, match=r"there is no tracker 'tensorbord'; did you mean tensorboard\?"):
        track(study, "tensorbord")
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "dasearch.report.trackers.wandb", raising=False)
    with pytest.raises(WrongUse, match=r'tracking with wandb needs its package .*; pip install "dasearch\[wandb\]"'):
        track(study, "wandb")
    assert not (tmp_path / "runs").exists()


def test_run_tracks(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(small_study(tmp_path).yaml())
    assert run_command(["run", "toy.yaml", "--budget", "2", "--no-train", "--track", "tensorboard"]) == 0
    capsys.readouterr()
    assert read_tensorboard(tmp_path / "runs" / "toy").points(STUDY, "search/MRR")[0] == [1, 2]
    assert run_command(["run", "toy.yaml", "--track", "mlfow"]) == 2
    assert "there is no tracker 'mlfow'; did you mean mlflow?" in capsys.readouterr().err
    assert run_command(["run", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in TRACKERS)


def test_train_and_ablate_track(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "toy.yaml").write_text(small_study(tmp_path).yaml())
    (tmp_path / "plan.yaml").write_text("{model: darec, groups: {r: {r = 2: {space.replace_every: 2}}}}")
    toy, tracked = str(tmp_path / "toy.yaml"), ["--track", "tensorboard"]
    assert run_command(["train", toy, "--layout", "SPS-PPS", *tracked]) == 0
    plan = ["--file", str(tmp_path / "plan.yaml"), "--seeds", "1", "--short"]
    capsys.readouterr()
    assert run_command(["ablate", toy, *plan, *tracked, "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    kept = read_tensorboard(tmp_path / "runs" / "toy")
    assert kept.points("train/001-darec-SPS-PPS", "validation/MRR")[0] == [0, 1]
    assert kept.facts["train/001-darec-SPS-PPS"]["layer02.context"] == "parallel"
    whole, sparse = "ablation/001-the-study-itself-seed-1", "ablation/002-r-r-2-seed-1"
    assert set(kept.curves) == {STUDY, "train/001-darec-SPS-PPS", whole, sparse}
    assert (kept.facts[whole]["layout"], kept.facts[sparse]["layout"]) == ("SSS-SSS", "SSS")
    assert "layer02.context" not in kept.facts[sparse]
    means = [variant["metrics"]["MRR"]["mean"] for variant in scored]
    assert kept.points(STUDY, "ablation/MRR") == ([1, 2], pytest.approx(means, rel=FLOAT32))


def test_mlflow_in_a_folder_whose_name_has_signs_of_urls(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from dasearch.report.trackers.mlflow import MLflow

    settings = small_settings(output=str(tmp_path / "what? a%20b"))
    (tmp_path / "what? a%20b" / settings.name).mkdir(parents=True)
    with closing(MLflow(settings)) as tracker:
        tracker.begin(STUDY, {"budget": "3"})
    assert (tmp_path / "what? a%20b" / settings.name / "mlflow.db").stat().st_size

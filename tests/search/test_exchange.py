"""Objects between machines without a shared disk: atomic, verified, retried; over a folder's URI and an S3 server."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dasearch.cli import run_command
from dasearch.errors import ExchangeError, WrongUse
from dasearch.folders import sha256
from dasearch.layout import PLAIN, Layout, Structure
from dasearch.search import objective
from dasearch.search.executors import Event, Job, Kind
from dasearch.search.executors import exchange as module
from dasearch.search.executors.exchange import Exchange, require_exchange
from dasearch.search.executors.tasks import LayoutTask, Workshop
from dasearch.search.executors.work import work_or_fail
from dasearch.search.objective import Objective, Prepared, Run, Users
from tests.search.trainings import Stub
from tests.training.studies import materials, small_settings

fs = pytest.importorskip("pyarrow.fs", reason="needs dasearch[cloud]")
BUCKET = "bucket"
SECRET = "a-secret-of-the-test"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server on loopback, which ends with the module."""
    moto = pytest.importorskip("moto.server", reason="needs moto[s3], flask and flask-cors, which no extra installs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    try:
        yield f"127.0.0.1:{started.get_host_and_port()[1]}"
    finally:
        started.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    options = {"endpoint_override": server, "scheme": "http", "region": "us-east-1"}
    fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir(BUCKET)
    return f"s3://{BUCKET}/prefix?endpoint_override={server}&scheme=http&region=us-east-1"


@pytest.fixture(params=["file", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("s3")) if request.param == "s3" else f"file://{tmp_path}/there"


def file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_what_is_put_is_what_comes_back(uri: str, tmp_path: Path) -> None:
    """Larger than what is read at once, empty, and again after it was replaced; another study has its own."""
    place, other = Exchange(uri, "toy"), Exchange(uri, "other")
    back = tmp_path / "back" / "file"
    for content in (b"x" * (2**20 + 1), b"", b"newer"):
        place.put("checkpoints/a", file(tmp_path / "here", content))
        assert place.get("checkpoints/a", back)
        assert back.read_bytes() == content
    assert not other.get("checkpoints/a", tmp_path / "none")
    assert [path.name for path in back.parent.iterdir()] == ["file"]
    place.forget("checkpoints/a")
    place.forget("checkpoints/a")
    assert not place.get("checkpoints/a", back)


def test_a_folder_comes_back_under_its_sha256(uri: str, tmp_path: Path) -> None:
    file(tmp_path / "bundle" / "deeper" / "a", b"1")
    file(tmp_path / "bundle" / "b", b"2")
    place = Exchange(uri, "toy")
    place.put_folder("prepared/x.tar", tmp_path / "bundle")
    assert place.get_folder("prepared/x.tar", tmp_path / "again")
    assert sha256(tmp_path / "again") == sha256(tmp_path / "bundle")
    place.clear("prepared")
    place.clear("prepared")
    assert not place.get_folder("prepared/x.tar", tmp_path / "never")


def test_a_damaged_object_is_refused(tmp_path: Path) -> None:
    place, back = Exchange(f"file://{tmp_path}/there", "toy"), tmp_path / "back"
    place.put("a", file(tmp_path / "here", b"something"))
    there = tmp_path / "there" / "toy" / "a"
    for damaged in (b"S" + there.read_bytes()[1:], there.read_bytes()[:-1], b""):
        there.write_bytes(damaged)
        with pytest.raises(ExchangeError, match="there/toy/a is damaged; delete it and run the same command again"):
            place.get("a", back)
    assert not back.exists()


class Flaky:
    """A file system that fails so many times before it answers."""

    def __init__(self, filesystem: Any, failures: int) -> None:
        self.filesystem, self.failures = filesystem, failures

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.filesystem, name)
        return self._failing(found) if name == "open_output_stream" else found

    def _failing(self, found: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise OSError("connection reset by https://key:word@host/x")
            return found(*given)

        return call


@pytest.mark.parametrize(("failures", "arrives"), [(len(module.PAUSES), True), (len(module.PAUSES) + 1, False)])
def test_a_lost_connection_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, arrives: bool
) -> None:
    paused: list[float] = []
    monkeypatch.setattr(module.time, "sleep", paused.append)
    opened = fs.FileSystem.from_uri
    flaky = lambda uri: (Flaky(opened(uri)[0], failures), opened(uri)[1])  # noqa: E731
    monkeypatch.setattr(fs, "FileSystem", type("FileSystem", (), {"from_uri": staticmethod(flaky)}))
    place = Exchange(f"file://{tmp_path}/there", "toy")
    here = file(tmp_path / "here", b"something")
    if arrives:
        place.put("a", here)
        assert place.get("a", tmp_path / "back")
    else:
        sentence = r"does not answer \(connection reset by https://\*\*\*@host/x\); check the address"
        with pytest.raises(ExchangeError, match=sentence):
            place.put("a", here)
    assert paused == list(module.PAUSES)
    assert [path.name for path in (tmp_path / "there").rglob("*") if path.is_file()] == (["a"] if arrives else [])


def test_a_server_that_is_gone_is_one_sentence_without_credentials(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSES", ())
    address = s3.partition("endpoint_override=")[2].partition("&")[0]
    place = Exchange(s3.replace(address, "127.0.0.1:1"), "toy")
    with pytest.raises(ExchangeError, match=r"s3://bucket/prefix does not answer \(.*; check the address") as refused:
        place.put("a", file(tmp_path / "here", b"something"))
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("http://host/x", "--exchange reads s3://BUCKET/PREFIX"),
        ("s3://", "--exchange reads s3://BUCKET/PREFIX"),
        (f"s3://key:{SECRET}@bucket/x", "--exchange takes no credentials; set them in the environment"),
    ],
)
def test_what_is_refused(
    uri: str, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongUse, match=sentence):
        require_exchange(uri)
    assert run_command(["run", "quickstart", "--workers", "2", "--exchange", uri]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert SECRET not in said
    assert run_command(["run", "quickstart", "--exchange", uri]) == 2
    assert "add --workers N" in capsys.readouterr().err


class Gone(Exchange):
    """Holds nothing and takes nothing."""

    def get(self, name: str, path: Path) -> bool:
        return False

    def put(self, name: str, path: Path) -> None:
        raise ExchangeError("file:///x does not answer")


def test_a_task_of_layouts_is_json_and_comes_back() -> None:
    settings = small_settings()
    runs = (Run(Layout.parse("SPL-PPS"), "trial/x", 3),)
    task = LayoutTask(runs, settings, settings.trial, Users.DATA_BO, Structure(2, lora=True), 4)
    record = json.loads(json.dumps(task.record()))
    assert (record["replace_every"], record["lora"], record["at_once"]) == (2, True, 4)
    assert LayoutTask.from_record(record) == task


def test_a_worker_that_cannot_leave_a_checkpoint_is_lost_and_its_training_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, heard = Stub(), list[Event]()
    monkeypatch.setattr(objective, "train_together", stub)
    settings = small_settings()
    ready = materials(settings)
    task = LayoutTask.of(
        Objective(settings, ready, settings.trial, PLAIN, tmp_path, counted=1),
        [Run(Layout.parse("SSS-SSS"), "trial/x", 0)],
    )
    job = Job(7, task, Prepared("", settings), tmp_path, attempt=2)
    work_or_fail(job, lambda: Workshop(ready), heard.append, Gone("file:///x", "toy"))
    assert [(event.kind, event.job, event.attempt) for event in heard] == [(Kind.BEGAN, 7, 2), (Kind.LOST, 7, 2)]
    assert heard[-1].text == "file:///x does not answer"
    assert stub.epochs == [("SSS-SSS", 0)]
    assert list(tmp_path.iterdir()) == []

"""The command line as a person meets it: what it prints, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from dasearch.cli import run_command
from dasearch.commands import Place, resuming
from dasearch.layout_file import read_layout
from dasearch.threads import WAITING, cores
from tests.conftest import toy_dataset, write_folder
from tests.training.studies import small_study


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a study file and its data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(small_study(tmp_path).yaml())
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study's folder, made once."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "toy.yaml").write_text(small_study(folder).yaml())
    assert run_command(["run", str(folder / "toy.yaml"), "--budget", "3"]) == 0
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2, said: int = 0) -> str:
    """The one sentence with which a command is refused, after so many lines that say what it begins with."""
    assert run_command(list(arguments)) == code
    found = capsys.readouterr()
    assert len(found.out.splitlines()) == said
    assert found.err.startswith("dasearch: ")
    assert "Traceback" not in found.err
    assert len(found.err.strip().splitlines()) == 1
    return found.err


def test_run_prints_each_trial_and_what_to_do_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "toy.yaml", "--budget", "3"]) == 0
    out = capsys.readouterr().out
    assert "1/3  SSS-SSS  MRR 0." in out
    assert "best 0." in out
    assert "left 0:" in out
    assert "gain over all-serial" in out
    assert "popularity" in out
    assert "Markov" in out
    assert "In NDCG@10 the winner is " in out
    assert f"saved model: {here}/runs/toy/model" in out
    assert f"next: dasearch recommend {here}/runs/toy/model --history" in out
    assert run_command(["status", "toy"]) == 0
    out = capsys.readouterr().out
    assert "toy: done, 3 of 3 evaluations" in out
    assert len(re.findall(r"^ *\d+ +[SP]{3}-[SP]{3} ", out, re.MULTILINE)) >= 3
    assert run_command(["status"]) == 0
    assert re.fullmatch(
        r"toy  done  3 of 3 evaluations  best MRR 0\.\d{4}  [SP]{3}-[SP]{3} *\n", capsys.readouterr().out
    )
    assert run_command(["status", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["phase"] == "done"
    assert len(record["trials"]) == 3


def test_no_train_stops_before_the_test_split(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "toy.yaml", "--budget", "2", "--no-train"]) == 0
    out = capsys.readouterr().out
    assert "Test split" not in out
    assert f"next: dasearch resume toy --output {here}/runs   (trains and tests the winner)" in out


def pasted(out: str) -> list[str]:
    """The command lines that were printed as the next ones, without what explains them."""
    lines = out[out.index("next: ") :].removeprefix("next: ").splitlines()
    return [line.partition("   (")[0].strip() for line in lines if line.strip()]


def test_what_is_printed_can_be_pasted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a shell, for settings with spaces, braces and another output folder and database."""
    settings = ["--set", "output=my runs", "--set", "trial.rates={adapters: 1.5}", "--storage", "the trials.db"]
    assert run_command(["run", "toy.yaml", "--budget", "2", "--no-train", *settings]) == 0
    again, status = pasted(capsys.readouterr().out)
    assert again == "dasearch resume toy --output 'my runs' --storage 'the trials.db'"
    assert run_command(shlex.split(status)[1:]) == 0
    assert "toy: " in capsys.readouterr().out
    assert run_command(shlex.split(again)[1:]) == 0
    first, *others = pasted(capsys.readouterr().out)
    assert len(others) == 2
    done = subprocess.run(
        first.replace("ITEM,ITEM,...", "item1,item2").replace("dasearch", f"{sys.executable} -m dasearch", 1),
        shell=True,
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for line in others:
        assert run_command(shlex.split(line.replace("ITEM,ITEM,...", "item1,item2"))[1:]) == 0, line


def test_a_printed_command_shows_no_password() -> None:
    storage = "postgresql://me:sesame@here/db"
    exchange = {"--workers": 2, "--cpus-per-worker": None, "--gpus-per-worker": 0.5, "--exchange": "s3://k:sesame@s/b"}
    assert resuming("a b", Place(storage=storage), exchange, ["mlflow", "wandb"]) == (
        "dasearch resume 'a b' --storage 'postgresql://***@here/db' --workers 2 --gpus-per-worker 0.5 "
        "--exchange 's3://***@s/b' --track mlflow --track wandb"
    )
    assert resuming("toy", Place(), {}, []) == "dasearch resume toy"
    assert Place("a b", storage).options == ["--output", "a b", "--storage", "postgresql://***@here/db"]
    assert Place().options == []


def test_a_study_begins_with_what_another_found(trained: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database, folder = trained / "runs" / "dasearch.db", trained / "runs" / "toy" / "model"
    best = json.loads((folder / "layout.json").read_text())["layout"]
    deeper = "-".join(group for group in best.split("-") for _ in range(2))
    for source, name, said in (
        (f"{database}:toy", "warm", "warm start: study toy (toy, 2 layers, seed 0), layouts: 3"),
        (str(folder), "warmer", "warm start: study toy (2 layers, seed 0), layouts: 1"),
    ):
        command = ["run", "toy.yaml", "--budget", "1", "--no-train", "--set", f"name={name}"]
        command += ["--set", "backbone.tiny.layers=4", "--warm-start", source]
        assert run_command(command) == 0
        out = capsys.readouterr().out
        assert said in out
        if name == "warmer":
            assert f"1/1  {deeper}  MRR" in out
    assert run_command(["status", "warm"]) == 0
    assert "warm start: 3 layouts of study toy (toy, 2 layers, seed 0)" in capsys.readouterr().out
    assert run_command(["status", "warm", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["warm_start"]) == 3
    assert run_command(["report", "warm", "--format", "md", "--out", "warm.md"]) == 0
    assert "| warm start | 3 layouts of study toy (toy, 2 layers, seed 0) |" in Path("warm.md").read_text()
    capsys.readouterr()
    command = ["run", "toy.yaml", "--set", "name=warm", "--set", "backbone.tiny.layers=4", "--warm-start", str(folder)]
    assert "study 'warm' began with another warm start, study toy (toy, 2 layers, seed 0);" in refused(capsys, *command)


def test_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(here)
    assert run_command(["run", "toy.yaml", "--dry-run", "--set", "trial.epochs=7"]) == 0
    out = capsys.readouterr().out
    assert "epochs: 7" in out
    assert "layouts in the space: 64" in out
    assert "trained" in out
    assert re.search(r"estimated time on this machine: \d+:\d\d", out)
    assert f"threads: 1 thread of {cores()} core" in out
    assert files(here) == before


def test_dry_run_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "toy.yaml", "--dry-run", "--json", "--set", "threads=3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["threads"] == 3
    assert found["estimate"]["threads"] == 3
    assert found["estimate"]["layouts"] == 64
    assert found["estimate"]["waiting"] == {"policy": WAITING.policy, "set_by": WAITING.set_by.value}
    assert torch.get_num_threads() == 1  # as before


WRONG = [
    (["run", "toy.yaml", "--set", "trial.epoch=2"], r"unknown key trial.epoch; did you mean epochs?"),
    (["run", "toy.yaml", "--json"], "add --dry-run, or use `dasearch status --json`"),
    (["run", "toy.yaml", "--set", "threads=0"], "threads: input should be greater than or equal to 1 (got 0)"),
    (["run", "toy.yaml", "--budget", "0"], "search.budget: input should be greater than or equal to 1 (got 0)"),
    (["run", "toy.yaml", "--set", "data.source=nowhere"], "there is no data set or folder 'nowhere'"),
    (["run", "toy.yaml", "--set", "data.source=untitled"], "has a title; give each an attribute 'title'"),
    (["run", "toy.yaml", "--set", "data.source=short"], "no user has 3 interactions"),
    (
        ["run", "toy.yaml", "--set", "backbone.name=nobody/nothing"],
        "is not on this machine and the Hugging Face hub cannot be reached",
    ),
    (["run", "toy.yaml", "--set", "backbone.name=smollm-135m"], "did you mean smollm2-135m?"),
    (["run", "toy.yaml", "--set", "output=occupied/runs"], "the output folder occupied/runs cannot be written"),
    (["run", "toy.yaml", "--set", "space.name=drec"], "there is no search space 'drec'; did you mean darec?"),
    (
        ["run", "toy.yaml", "--storage", "occupied"],
        "occupied cannot be used as a study database (file is not a database)",
    ),
    (["run", "toy.yaml", "--set", "device=cuda:7"], "this machine has no CUDA GPU; use --set device=cpu"),
    (["run", "nowhere.yaml"], "there is no study file 'nowhere.yaml'"),
    (["run", "toy.yaml", "--warm-start", "nowhere.json"], "nowhere.json cannot be read (No such file or directory)"),
    (["run", "toy.yaml", "--warm-start", "nowhere.json", "--dry-run"], "nowhere.json cannot be read"),
    (["run", "toy.yaml", "--warm-start", "toy.yaml"], "toy.yaml is not a trials.json, layout.json or study database"),
    (["train", "toy.yaml", "--layout", "SSS"], "the layout SSS has 1 layers of 3 sites and the model has 2 of 3"),
    (["train", "toy.yaml", "--layout", "SXS-SSS"], "a layout is written with S, P, N, A, L and -"),
    (["train", "toy.yaml", "--layout", "best"], "there are no studies under"),
    (["recommend", "nowhere", "--history", "item1"], "nowhere holds no trained model"),
    (
        ["recommend", "nowhere"],
        "give a history as in --history ITEM,ITEM, or a file of them as in --from FILE --out FILE",
    ),
    (["recommend", "nowhere", "--from", "in.jsonl"], "or a file of them as in --from FILE --out FILE"),
    (["recommend", "nowhere", "--history", "item1", "--out", "out.jsonl"], "give a history as in --history ITEM,ITEM"),
    (["recommend", "nowhere", "--from", "a.jsonl", "--out", "b.jsonl", "--user", "u1"], "--user requires --history"),
    (["evaluate", "nowhere"], "nowhere holds no trained model"),
    (["resume"], "there are no studies under runs yet; start one with `dasearch run`"),
    (["resume", "toy"], "there is no study 'toy' to resume; no studies are under runs yet"),
    (["resume", "toy.yaml"], "there is no study 'toy' to resume; no studies are under /"),
    (["resume", "--storage", "occupied"], "occupied cannot be used as a study database"),
    (["status"], "there are no studies under runs yet; start one with `dasearch run`"),
    (["report", "toy"], "there are no studies under runs yet; start one with `dasearch run`"),
    (["report", "toy", "--format", "pdf"], "'pdf' is not one of 'html', 'md'"),
    (["report"], "Missing argument 'STUDY'"),
    (["data", "stats", "nowhere"], "there is no data set or folder 'nowhere'"),
    (["run", "toy.yaml", "--bugdet", "3"], "No such option: --bugdet"),
    (["train", "toy.yaml"], "Missing option '--layout'"),
    (["rnu"], "No such command 'rnu'"),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    (here / "occupied").write_text("this file is in the way of a folder and no database " * 20)
    for name, attributes in (("untitled", {"brand": "x"}), ("short", {"title": "x"})):
        (here / name).mkdir()
        (here / name / "interactions.tsv").write_text("user_id\titem_id\ttimestamp\nu\ti\t1\nu\ti\t2\n")
        (here / name / "items.jsonl").write_text(json.dumps({"item_id": "i", "attributes": attributes}) + "\n")
    before = files(here)
    assert sentence in refused(capsys, *arguments)
    assert files(here) - {"runs", "runs/toy"} == before


def test_a_changed_search_space_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "toy.yaml", "--budget", "1", "--no-train"]) == 0
    capsys.readouterr()
    sentence = refused(capsys, "run", "toy.yaml", "--budget", "1", "--set", "space.replace_every=2")
    assert "began with another search space (replace_every: 1 -> 2)" in sentence


def test_interrupt_is_130(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert run_command(["run", "toy.yaml", "--set", "name=begun", "--budget", "1", "--no-train"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("dasearch.search.study.Study.run", interrupt)
    assert refused(capsys, "run", "toy.yaml", code=130) == (
        "dasearch: interrupted; run the same command again to resume\n"  # nothing is stored yet
    )
    again = f"dasearch: interrupted; resume with: dasearch resume begun --output {here}/runs"
    given = ["--workers", "2", "--cpus-per-worker", "1", "--track", "tensorboard"]
    assert refused(capsys, "resume", "begun", *given, code=130, said=1) == f"{again} {' '.join(given)}\n"
    assert refused(capsys, "resume", code=130, said=1) == f"{again}\n"


def test_resume_goes_on_with_a_studys_own_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the same trials as a study that was not stopped; without a name while only one is unfinished."""
    changed = ["--set", "trial.lr=0.02", "--seed", "3"]
    assert run_command(["run", "toy.yaml", "--set", "name=whole", "--budget", "3", *changed]) == 0
    assert run_command(["run", "toy.yaml", "--set", "name=parts", "--budget", "2", "--no-train", *changed]) == 0
    capsys.readouterr()
    assert run_command(["resume", "--budget", "3", "--no-train"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("study parts with its own settings of runs/dasearch.db\n")
    assert "study parts resumes at trial 3 of 3; 2 done" in out
    assert run_command(["run", "toy.yaml", "--set", "name=other", "--budget", "1", "--no-train"]) == 0
    capsys.readouterr()
    several = refused(capsys, "resume")
    assert "runs/dasearch.db has 2 unfinished studies: parts, other; name one, as in `dasearch resume other`" in several
    assert run_command(["resume", "parts"]) == 0
    assert "saved model: " in capsys.readouterr().out
    assert run_command(["status", "--json"]) == 0
    whole, parts, _ = json.loads(capsys.readouterr().out)
    assert parts["phase"] == "done"
    kept = ("number", "layout", "score")
    assert [[trial[key] for key in kept] for trial in parts["trials"]] == [
        [trial[key] for key in kept] for trial in whole["trials"]
    ]
    assert [result["value"] for result in parts["results"]] == [result["value"] for result in whole["results"]]
    assert run_command(["resume", "other"]) == 0
    capsys.readouterr()
    assert "every study of runs/dasearch.db is done: whole, parts, other; begin another one" in refused(
        capsys, "resume"
    )


def test_resume_refuses_what_is_not_stored(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no studies are under runs yet; `dasearch run quickstart` begins one" in refused(
        capsys, "resume", "quickstart"
    )
    assert run_command(["run", "toy.yaml", "--budget", "1", "--no-train"]) == 0
    capsys.readouterr()
    assert refused(capsys, "resume", "tyo") == (
        "dasearch: there is no study 'tyo' to resume; did you mean toy?; runs/dasearch.db has none of that name; "
        "`dasearch run STUDY` begins one, --output and --storage say where it is stored\n"
    )
    assert "began with another seed" in refused(capsys, "resume", "toy", "--set", "seed=9", said=1)
    assert "a study that is resumed keeps its name" in refused(capsys, "resume", "toy", "--set", "name=two")
    assert "add --workers N" in refused(capsys, "resume", "toy", "--gpus-per-worker", "1")


def test_unforeseen_errors_are_one_sentence_too(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all\nthings")

    monkeypatch.setattr("dasearch.search.study.Study.run", broken)
    assert "ZeroDivisionError: of all things (set DASEARCH_DEBUG=1" in refused(capsys, "run", "toy.yaml", code=1)


def test_recommend(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(trained / "runs" / "toy" / "model")
    assert run_command(["recommend", model, "--history", "item1, item2,item3", "-k", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len({one["item"] for one in found}) == 4
    assert run_command(["recommend", model, "--history", "item1,item2", "--top", "40", "--json"]) == 0
    unseen = [one["item"] for one in json.loads(capsys.readouterr().out)]
    assert len(unseen) == 38
    assert not {"item1", "item2"} & set(unseen)
    assert run_command(["recommend", model, "--history", "item1,item2", "--include-seen", "--top", "40", "--json"]) == 0
    everything = [one["item"] for one in json.loads(capsys.readouterr().out)]
    assert {*unseen, "item1", "item2"} == set(everything)
    history = ",".join(everything)
    assert run_command(["recommend", model, "--history", history]) == 0
    assert capsys.readouterr().out == "the history holds every item; --include-seen ranks them all\n"
    assert run_command(["recommend", model, "--history", "item1", "--user", "u3"]) == 0
    assert "  1  item" in capsys.readouterr().out
    for arguments, sentence in (
        (["--history", "itm1"], "unknown item 'itm1'; did you mean item"),
        (["--history", ","], "the history is empty"),
        (["--history", "item1", "-k", "0"], "k is 0; ask for at least 1 item"),
        (["--history", "item1", "--user", "nobody"], "unknown user 'nobody'"),
    ):
        assert sentence in refused(capsys, "recommend", model, *arguments)


def test_recommend_answers_a_file(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, source, out = str(trained / "runs" / "toy" / "model"), tmp_path / "in.jsonl", tmp_path / "out.parquet"
    rows = [{"history": ["item1", "item2"], "user": "u3"}, {"history": ["itm1"]}, {"history": ["item3"]}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["recommend", model, "--from", str(source), "--out", str(out), "-k", "4"]
    sentence = "in.jsonl, row 2: unknown item 'itm1'; did you mean item1? (1 of 3 rows cannot be answered; --skip-bad"
    assert sentence in refused(capsys, *arguments)
    assert not out.exists()
    assert run_command([*arguments, "--skip-bad"]) == 0
    found = capsys.readouterr().out
    assert re.fullmatch(
        rf"answered 2 of 3 rows in [\d.]+ s, [\d,]+ a second: {out}\nskipped 1 row, the first: {source}, row 2: unknown .*\n",
        found,
    )
    assert run_command(["recommend", model, "--history", "item1,item2", "--user", "u3", "-k", "4", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    first, second = pl.read_parquet(out).to_dicts()
    assert (first["row"], second["row"]) == (1, 3)
    assert first["items"] == [one["item"] for one in alone]
    assert first["scores"] == pytest.approx([one["score"] for one in alone], abs=1e-5)
    assert "exists; choose another file, or replace it with --overwrite" in refused(capsys, *arguments)
    assert run_command([*arguments, "--skip-bad", "--overwrite", "--include-seen", "-k", "40", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {k: record[k] for k in ("out", "rows", "answered", "left_out")} == {
        "out": str(out),
        "rows": 3,
        "answered": 2,
        "left_out": 1,
    }
    assert [len(items) for items in pl.read_parquet(out)["items"]] == [40, 40]


def test_recommend_interrupted_says_what_was_done(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dasearch.search.progress.Terminal.answering", interrupt)
    (tmp_path / "in.jsonl").write_text('{"history": ["item1"]}\n')
    places = ["--from", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    sentence = refused(capsys, "recommend", str(trained / "runs" / "toy" / "model"), *places, code=130)
    assert "interrupted, 1 of 1 rows answered; " in sentence
    assert sentence.endswith("out.jsonl was not written\n")
    assert files(tmp_path) == {"in.jsonl"}


def test_ablate_prints_a_table_and_draws_a_figure(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ablate", "toy.yaml", "--seeds", "2", "--short", "--only", "lambda_1"]
    assert run_command(arguments) == 0
    out = capsys.readouterr().out
    assert "1/6  SSS-SSS  the study itself, seed 1" in out
    assert "gain in MRR" in out
    page = (here / "runs" / "toy" / "ablation.html").read_text()
    assert "lambda_1, alignment (fig. 7)" in page
    assert run_command([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in found] == ["the study itself", "0", "1"]
    assert "there is no group 'lamda'" in refused(capsys, "ablate", "toy.yaml", "--only", "lamda")


def test_report_writes_one_file(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(trained / "runs")
    assert run_command(["report", "toy", "--output", output]) == 0
    path = trained / "runs" / "toy" / "report.html"
    assert capsys.readouterr().out == f"report: {path}\n"
    page = path.read_text()
    assert page.startswith("<!doctype html>")
    assert "train interactions</th>" in page  # the data set's numbers, recorded when the study began
    assert run_command(["report", str(trained / "toy.yaml"), "--output", output, "--format", "md"]) == 0
    text = (trained / "runs" / "toy" / "report.md").read_text()
    assert "## Verdict" in text
    assert "| users | 60 |" in text
    storage, out = f"sqlite:///{trained}/runs/dasearch.db", tmp_path / "new" / "a.md"
    assert run_command(["report", "toy", "--storage", storage, "--format", "md", "--out", str(out)]) == 0
    assert "**Every trial**" in out.read_text()


def test_compare_two_trials(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(trained / "runs")]
    assert run_command(["compare", "toy", "--trials", "0", "1", *output]) == 0
    out = capsys.readouterr().out
    assert "SSS-SSS" in out
    assert "layer02.recommendation   serial    parallel" in out
    assert "From trial 0 to trial 1: 6 sites differ; MRR " in out
    assert "over fresh seeds, paired (95% t interval)" in out
    assert run_command(["compare", "toy", "--trials", "0", "1", "--json", *output]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["score"] == pytest.approx(found["trials"][1]["score"] - found["trials"][0]["score"])
    assert found["confirmed"]["low"] < found["confirmed"]["mean"] < found["confirmed"]["high"]
    assert "has no trial 9; its trials are 0 to 2" in refused(capsys, "compare", "toy", "--trials", "0", "9", *output)


def test_compare_two_studies(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(trained / "runs")]
    assert run_command(["compare", "toy", "toy", *output]) == 0
    out = capsys.readouterr().out
    assert "Both have the same winner." in out
    assert "Their settings are the same." in out
    assert run_command(["compare", "toy", "toy", "--json", *output]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["studies"][0] == found["studies"][1]
    assert {row["name"] for row in found["studies"][0]["results"]} >= {"winner", "popularity"}
    said = refused(capsys, "compare", "toy", "toi", *output)
    assert f"there is no study 'toi' in {trained / 'runs' / 'dasearch.db'}; studies there: toy" in said
    for wrong in (["compare", "toy", *output], ["compare", "toy", "toy", "--trials", "0", "1", *output]):
        assert "or two trials of one as in --trials 3 17" in refused(capsys, *wrong)


def test_evaluate_repeats_the_studys_test_metrics(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained / "runs" / "toy" / "model"
    assert run_command(["evaluate", str(model), "--split", "test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stored = json.loads((model / "config.json").read_text())["results"]["test"]
    assert found == {"split": "test", **stored}
    assert run_command(["evaluate", str(model)]) == 0
    assert capsys.readouterr().out.startswith("validation: MRR 0.")


def test_every_command_knows_a_study_by_its_name(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From another folder without a file of that name, with only the stored settings."""
    monkeypatch.chdir(tmp_path)
    runs = ["--output", str(trained / "runs")]
    recalled = f"study toy with its own settings of {trained}/runs/dasearch.db\n"
    assert run_command(["run", "toy", *runs]) == 0
    out = capsys.readouterr().out
    assert out.startswith(recalled)
    assert f"saved model: {trained}/runs/toy/model" in out
    assert run_command(["run", "toy", "--dry-run", "--json", "--set", "final.epochs=1", *runs]) == 0
    said = capsys.readouterr()
    assert said.err == recalled
    assert (json.loads(said.out)["settings"]["search"]["budget"], json.loads(said.out)["settings"]["seed"]) == (3, 0)
    assert run_command(["train", "toy", "--layout", "best", "--out", "best", "--set", "final.epochs=1", *runs]) == 0
    assert "saved model: best" in capsys.readouterr().out
    assert read_layout("best") == read_layout(trained / "runs" / "toy" / "model")
    assert run_command(["ablate", "toy", "--seeds", "1", "--short", "--only", "lambda_1", "--json", *runs]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(recalled)
    assert len(json.loads(said.out)) == 3
    assert run_command(["evaluate", "toy", "--json", *runs]) == 0
    by_name = capsys.readouterr().out
    assert run_command(["evaluate", str(trained / "runs" / "toy" / "model"), "--json"]) == 0
    assert capsys.readouterr().out == by_name
    assert run_command(["recommend", "toy", "--history", "item1", "-k", "2", "--json", *runs]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert run_command(["data", "stats", "toy", "--json", *runs]) == 0
    assert json.loads(capsys.readouterr().out)["users"] == 60
    assert "began with another trial.epochs" in refused(capsys, "run", "toy", "--set", "trial.epochs=7", *runs, said=1)
    assert "there is no study 'tyo'" in refused(capsys, "evaluate", "tyo", *runs)


def test_evaluate_refuses_another_catalogue(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(trained / "runs" / "toy" / "model")
    other = write_folder(tmp_path / "other", toy_dataset(60, 12))
    assert "has another catalogue than the model" in refused(capsys, "evaluate", model, "--data", str(other))
    users = write_folder(tmp_path / "users", toy_dataset(50, 40))
    assert "has other users than the model" in refused(capsys, "evaluate", model, "--data", str(users))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "catalogue.jsonl", "layout.json", "config.json", "backbone/config.json"]
)
def test_damaged_model_folders(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(trained / "runs" / "toy" / "model", model)
    path = model / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = {
        "layout.json": "is not a layout file",
        "catalogue.jsonl": "is not the catalogue that the model was trained on",
    }
    found = refused(capsys, "recommend", str(model), "--history", "item1")
    assert said.get(name, "is incomplete or damaged") in found
    path.unlink()
    refused(capsys, "recommend", str(model), "--history", "item1")


def test_names_are_known_in_any_capitals(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["--output", str(trained / "runs")]
    monkeypatch.chdir(tmp_path)
    assert run_command(["export", "toy", "--format", "Trials", *runs]) == 0
    assert (tmp_path / "toy-trials" / "trials.json").is_file()
    assert run_command(["report", "toy", "--format", "MD", "--out", "toy.md", *runs]) == 0
    assert run_command(["evaluate", "toy", "--split", "Validation", *runs]) == 0
    for given, letters in (("All-Parallel", "PPP-PPP"), ("sps-ppS", "SPS-PPS"), ("BEST", None)):
        assert run_command(["train", "toy", "--layout", given, "--out", given, "--set", "final.epochs=1", *runs]) == 0
        assert letters is None or str(read_layout(given)) == letters
    asked = [
        "bench",
        "samplers",
        "--sampler",
        "RANDOM",
        "--family",
        "Smooth",
        "--sites",
        "6",
        "--seeds",
        "1",
        "--no-ask",
    ]
    capsys.readouterr()
    assert run_command([*asked, "--trials", "11", "--json"]) == 0
    assert {score["sampler"].lower() for score in json.loads(capsys.readouterr().out)["scores"]} >= {"random"}


def test_export(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ["--output", str(trained / "runs")]
    monkeypatch.chdir(tmp_path)
    assert run_command(["export", "toy", "--format", "torch", *runs]) == 0
    out = capsys.readouterr().out
    assert "toy-torch/recommender.py" in out
    assert "next: python toy-torch/recommender.py ITEM,ITEM,..." in out
    assert files(tmp_path / "toy-torch") == {
        "recommender.py", "config.json", "model.safetensors", "catalogue.json", "layout.json"
    }  # fmt: skip
    model = str(trained / "runs" / "toy" / "model")
    assert run_command(["export", model, "--format", "layout", "--out", "it's elsewhere"]) == 0
    assert read_layout("it's elsewhere") == read_layout(model)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    (opening,) = pasted(capsys.readouterr().out)
    opening = opening.replace("python", sys.executable, 1)
    assert subprocess.run(opening, shell=True, env=environment, capture_output=True, check=True).stdout
    assert run_command(["export", "toy", "--format", "trials", "--out", "trials", *runs]) == 0
    assert len(json.loads(Path("trials/trials.json").read_text())["trials"]) == 3
    assert run_command(["export", "--list"]) == 0
    assert "onnx  " in capsys.readouterr().out
    assert "name a study or the folder of a trained model" in refused(capsys, "export")
    assert "is not an empty folder" in refused(capsys, "export", "toy", "--format", "torch", *runs)
    assert "is not an empty folder" in refused(capsys, "export", "toy", "--format", "trials", "--out", "trials", *runs)
    assert "there is no format 'hff'; did you mean hf" in refused(capsys, "export", "toy", "--format", "hff", *runs)
    assert "there is no study 'tyo'" in refused(capsys, "export", "tyo", *runs)


def test_export_refuses_a_study_without_a_model_or_with_another(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "toy.yaml", "--budget", "3", "--no-train"]) == 0
    capsys.readouterr()
    runs = ["--output", str(here / "runs")]
    assert "study toy has no trained model yet; run `dasearch run toy`" in refused(capsys, "export", "toy", *runs)
    assert run_command(["run", "toy.yaml", "--budget", "3"]) == 0
    capsys.readouterr()
    model = here / "runs" / "toy" / "model"
    (model / "users.json").write_text((model / "users.json").read_text() + " ")
    assert "was modified since study toy wrote it" in refused(capsys, "export", "toy", *runs)
    model.rename(here / "moved")
    assert "is no longer at" in refused(capsys, "export", "toy", *runs)


def test_train_one_layout(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["train", "toy.yaml", "--layout", "SPS-PPS", "--out", "m"]) == 0
    out = capsys.readouterr().out
    assert "validation: MRR 0." in out
    assert "trained parameters" in out
    assert json.loads((here / "m" / "layout.json").read_text())["layout"] == "SPS-PPS"
    assert run_command(["train", "toy.yaml", "--layout", "all-parallel", "--set", "model.variation=llmrec"]) == 0
    assert (here / "runs" / "toy" / "models" / "PPP-PPP" / "model.safetensors").is_file()
    (here / "full").mkdir()
    capsys.readouterr()
    assert "exists and is not a model folder" in refused(
        capsys, "train", "toy.yaml", "--layout", "SPS-PPS", "--out", "full"
    )


def test_data_stats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["data", "stats", str(here / "toy"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["users"], found["items"]) == (60, 40)
    assert found["train_interactions"] / 60 + 2 == pytest.approx(found["mean_length"])
    assert run_command(["data", "stats", "toy.yaml"]) == 0
    assert "tied last" in capsys.readouterr().out
    with (here / "toy" / "interactions.tsv").open("a") as file:
        file.write("u1\tnowhere\t1\n")
    assert run_command(["data", "stats", "toy.yaml"]) == 0
    assert "items that items.jsonl lacks, such as 'nowhere'; they are dropped" in capsys.readouterr().out


def test_doctor_looks_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASEARCH_CACHE", str(here / "cache"))
    before = files(here)
    assert run_command(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "smollm2-135m" in out
    assert f"cache: {here}/cache, 0 MB, writable" in out
    assert run_command(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in found["backbones"] if one["usable"]} >= {"tiny-opt", "minilm-l6"}
    assert found["versions"]["Python"] == sys.version.split()[0]
    assert (found["threads"]["cores"], found["threads"]["most"]) == (cores(), 1)
    assert found["cache"] == {"folder": str(here / "cache"), "size": 0, "writable": True}
    assert files(here) == before


def test_doctor_of_a_study(trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    capsys.readouterr()
    before = files(trained)
    assert run_command(["doctor", "toy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        *("database", "trials", "checkpoints", "for workers", "saved model", "versions", "disk")
    ]
    assert lines[4] == "saved model: runs/toy/model, as saved"
    assert lines[-1] == "no problems found"
    assert files(trained) == before

    catalogue = trained / "runs" / "toy" / "model" / "catalogue.jsonl"
    text = catalogue.read_text()
    catalogue.write_text(text + "\n")
    (trained / "runs" / "toy" / "checkpoints").mkdir()
    damaged = trained / "runs" / "toy" / "checkpoints" / "x.safetensors"
    damaged.write_text("no tensors")
    assert run_command(["doctor", str(trained / "toy.yaml")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "needs attention: checkpoints, saved model"
    assert run_command(["doctor", "toy", "--fix", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["done"] == ["removed runs/toy/checkpoints/x.safetensors: damaged; its training starts over"]
    assert [one["name"] for one in found["checks"] if not one["good"]] == ["saved model"]
    assert not damaged.exists()
    damaged.parent.rmdir()
    catalogue.write_text(text)
    assert run_command(["doctor", "toy"]) == 0


def test_doctor_is_told_which_study(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--fix needs a study; name one" in refused(capsys, "doctor", "--fix")
    assert "there are no studies under runs yet" in refused(capsys, "doctor", "toy")


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["status"],
        ["train"],
        ["evaluate"],
        ["recommend"],
        ["doctor"],
        ["ablate"],
        ["data"],
        ["data", "stats"],
        ["data", "convert"],
        ["data", "formats"],
        ["report"],
        ["compare"],
        ["dashboard"],
    ],
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: dasearch {' '.join(command)}".strip() in out
    assert "TEXT" not in out  # every option says what it takes
    assert sys.prefix not in out


def test_data_convert_stats_and_formats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "shop.csv").write_text(
        "who,what,when,name\n" + "".join(f"u{k % 9},i{k % 7},{k},N{k % 7}\n" for k in range(63))
    )
    columns = "{user: who, item: what, timestamp: when, title: name}"
    assert run_command(["data", "convert", "shop.csv", "out", "--columns", columns]) == 0
    assert capsys.readouterr().out == "out: 9 users, 7 items, 63 interactions\n"
    assert run_command(["data", "stats", "out", "--format", "plain", "--set", "data.min_user_interactions=7"]) == 0
    out = capsys.readouterr().out
    assert "interactions             63" in out
    assert "5.00 + 2 = 7.00, holds" in out
    assert run_command(["data", "stats", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identity"] is True
    assert run_command(["data", "convert", "toy.yaml", "toy-copy"]) == 0  # a study names its data
    assert "60 users, 40 items" in capsys.readouterr().out
    assert run_command(["data", "formats"]) == 0
    out = capsys.readouterr().out
    assert "amazon-2018  Category_5.json" in out
    assert "from: MovieLens 100K" in out
    for arguments, sentence in (
        (["stats", "out", "--format", "plian"], "data.format is 'plian'; did you mean plain?"),
        (["stats", "out", "--set", "data.cor=iterated"], "unknown key data.cor; did you mean core?"),
        (["stats", "out", "--set", "data.min_rating=3"], "have no ratings; remove data.min_rating"),
        (["convert", "toy", "out"], "out exists and is not an empty folder; nothing was written"),
        (["convert", "shop.csv", "new"], "shop.csv, line 1: no column 'user_id'"),
        (["convert", "shop.csv", "new", "--columns", "{user: "], "is not a YAML value; quote it"),
    ):
        assert sentence in refused(capsys, "data", *arguments)
    assert not (here / "new").exists()


def test_a_snippet_is_printed_or_written(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(trained / "runs" / "toy" / "model")
    layout = json.loads((Path(model) / "layout.json").read_text())["layout"]
    before = files(trained)
    assert run_command(["export", model, "--format", "snippet"]) == 0
    text = capsys.readouterr().out
    assert f'dasearch.Layout.parse("{layout}")' in text
    assert "weights=" not in text
    compile(text, "snippet", "exec")
    assert files(trained) == before
    assert run_command(["export", model, "--format", "snippet", "--out", str(tmp_path / "out")]) == 0
    assert f"{tmp_path}/out/snippet.py" in capsys.readouterr().out
    assert 'weights=load_file(here / "adapters.safetensors")' in (tmp_path / "out" / "snippet.py").read_text()
    assert "did you mean snippet" in refused(capsys, "export", model, "--format", "snipet")

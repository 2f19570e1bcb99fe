"""Several torchrun ranks: they train like one process, resume from its checkpoint, and end together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dasearch.cli import run_command
from dasearch.errors import StudyError, WrongUse
from dasearch.training.ranks import ALONE, Peers, joined, started
from dasearch.training.seeds import generator_for
from tests.training.rank_worker import hear
from tests.training.studies import small_study

ROOT = Path(__file__).parents[2]
DAREC: dict[str, Any] = {  # 9 batches: steps of 4, 4 and 1 of them
    "model": {"dropout": 0.2, "head_states": "whitened"},
    "final": {"epochs": 3, "batch_size": 7, "accumulate": 4, "average": 0.9},
}
IDLE: dict[str, Any] = {  # 5 batches, the last of which is too small for MMD
    "model": {"kind": "idle"},
    "final": {"epochs": 3, "batch_size": 24, "accumulate": 2, "lr": 5e-3},
}
UNLIKE: dict[str, Any] = {**IDLE, "final": {**IDLE["final"], "batch_size": 32, "accumulate": 4}}  # so is the 4th of 4


def written(folder: Path, changes: dict[str, Any]) -> Path:
    study = folder / "toy.yaml"
    study.write_text(small_study(folder, **changes).yaml(), encoding="utf-8")
    return study


def two_ranks(*arguments: str | Path, monitored: float = 0.5) -> subprocess.CompletedProcess[str]:
    """The worker in two processes over the loopback; torchrun looks at them every so many seconds, and chooses a port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--monitor-interval", str(monitored), "-m", "tests.training.rank_worker", *map(str, arguments)]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment = {**alone, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def heard_by(rank: int, folder: Path) -> Any:
    return json.loads((folder / f"heard.{rank}.json").read_text())


def same_model(first: Path, second: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "shard"), [(DAREC, "none"), (IDLE, "none"), (UNLIKE, "layers")], ids=["darec", "idle", "idle sharded"]
)
def test_two_ranks_train_as_one_process(tmp_path: Path, changes: dict[str, Any], shard: str) -> None:
    """To the last bit: parts are summed in the order of one process, and gathered layers have the same bits."""
    alone = hear(written(tmp_path, changes), tmp_path / "one" / "model")
    study = written(tmp_path, {**changes, "shard": shard})
    done = two_ranks(study, tmp_path / "two" / "model", tmp_path / "heard")
    assert done.returncode == 0, done.stderr
    assert alone[0][0]["total"] != alone[2][0]["total"]
    assert heard_by(0, tmp_path) == heard_by(1, tmp_path) == alone
    assert same_model(tmp_path / "one" / "model", tmp_path / "two" / "model")
    assert [path.name for path in (tmp_path / "two").rglob("*.safetensors") if "checkpoints" in path.parts] == []


@pytest.mark.slow
def test_two_ranks_resume_from_a_checkpoint_with_half_of_each_layer(tmp_path: Path) -> None:
    """The checkpoint is of ranks that held all layers; the last step and the validation leave the second without a batch."""
    study, out, size = written(tmp_path, DAREC), tmp_path / "two" / "model", tmp_path / "whole.bytes"
    alone = hear(study, tmp_path / "one" / "model", size=size)
    broken = two_ranks(study, out, tmp_path / "heard", "interrupted")
    assert broken.returncode == 0, broken.stderr
    assert heard_by(0, tmp_path) == alone[:1]
    assert len(list((out.parent / "checkpoints").glob("*.safetensors"))) == 1
    done = two_ranks(written(tmp_path, {**DAREC, "shard": "layers"}), out, tmp_path / "heard")
    assert done.returncode == 0, done.stderr
    assert heard_by(0, tmp_path) == heard_by(1, tmp_path) == alone[1:]
    assert same_model(tmp_path / "one" / "model", out)
    assert same_model(tmp_path / "one" / "model" / "backbone", out / "backbone")
    held = [int((tmp_path / f"heard.{rank}.bytes").read_text()) for rank in range(2)]
    assert held == [int(size.read_text()) // 2] * 2


@pytest.mark.slow
def test_a_lost_rank_ends_the_others_with_one_sentence(tmp_path: Path) -> None:
    study = written(tmp_path, DAREC)
    done = two_ranks(
        study, tmp_path / "model", tmp_path / "heard", "lost", monitored=5
    )  # the other rank is first to notice
    assert done.returncode != 0
    assert done.stderr.count("another rank of this training ended; run the same command again to resume") == 1
    assert not (tmp_path / "model").exists()


def test_parts_of_one_process_are_its_own() -> None:
    parts = [torch.randn(2, 3, generator=generator_for("parts", place)) for place in range(3)]
    assert list(ALONE.own(range(5))) == [0, 1, 2, 3, 4]
    assert list(Peers(1, 2).own(range(5))) == [1, 3]
    assert torch.equal(ALONE.total(iter(parts), 3, parts[0]), parts[0] + parts[1] + parts[2])


@given(st.integers(1, 4), st.lists(st.sampled_from("ab"), max_size=9))
def test_ranks_in_step_compute_parts_of_one_kind_at_a_time(size: int, kinds: list[str]) -> None:
    parts = list(enumerate(kinds))
    found = [list(Peers(rank, size).in_step(parts, lambda part: part[1])) for rank in range(size)]
    for turn in zip(*found, strict=True):  # equally many
        assert len({kind for (_, kind), _ in turn}) == 1
    for rank, computed in enumerate(found):
        assert [part for part, own in computed if own] == list(Peers(rank, size).own(parts))


def test_uneven_steps_name_the_setting() -> None:
    Peers(0, 3).require_shares("final.accumulate", 6)
    with pytest.raises(StudyError, match=r"4 micro-batches .* multiple of 3; use --set final\.accumulate=6"):
        Peers(0, 3).require_shares("final.accumulate", 4)
    with pytest.raises(StudyError, match=r"use --set final\.accumulate=2"):
        Peers(0, 2).require_shares("final.accumulate", 1)


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


def test_a_world_size_of_one_is_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert started() == ALONE
    with joined(torch.device("cpu")) as peers:
        assert peers == ALONE
    assert not torch.distributed.is_initialized()


@pytest.mark.usefixtures("second_of_two")
def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(WrongUse, match=r"2 ranks .* has 1 GPUs; use --nproc-per-node 1"), joined(torch.device("cuda")):
        pass
    with pytest.raises(WrongUse, match="use --set device=cuda"), joined(torch.device("cuda:1")):
        pass


@pytest.mark.parametrize("command", ["run", "resume", "ablate"])
def test_other_commands_reject_several_ranks_once(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], second_of_two: None
) -> None:
    assert run_command([command]) == 2
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_command([command]) == 2
    assert f"start `dasearch {command}` without it" in capsys.readouterr().err


def test_the_package_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "dasearch", "trains"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such command 'trains'" in done.stderr

"""Where a raw exception stood: one sentence, or success."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dasearch.cli import run_command
from dasearch.errors import BackboneError
from dasearch.models.pretrained import load_pretrained, pretrained_layers
from dasearch.training.materials import build_catalogue, open_backbone
from tests.conftest import VOCABULARY, tiny_model, toy_dataset, word_tokenizer
from tests.training.studies import small_settings, small_study


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_few_steps_of_tiny_opt(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path))
    losses: list[float] = []
    settings = small_settings(backbone={"tiny": {"steps": steps}})
    open_backbone(settings, toy_dataset(), progress=lambda step, total, loss: losses.append(loss))
    assert len(losses) == steps


def saved(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_larger_than_the_embeddings(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["title"])
    settings = small_settings(backbone={"name": saved(tmp_path, tokenizer)})
    backbone, loaded = open_backbone(settings, toy_dataset())
    with pytest.raises(
        BackboneError, match=rf"has {VOCABULARY} token embeddings and its tokenizer gives token \d+; save "
    ):
        build_catalogue(settings, toy_dataset(), backbone, loaded)


def test_a_padding_token_of_the_tokenizer_alone_is_harmless(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[ADDED]"})
    assert tokenizer.pad_token_id >= VOCABULARY
    settings = small_settings(backbone={"name": saved(tmp_path, tokenizer)})
    backbone, loaded = open_backbone(settings, toy_dataset())
    assert build_catalogue(settings, toy_dataset(), backbone, loaded).row_format.pad_token == 0


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"bits": 4}, "unknown"),
    ],
)
def test_quantized_weights(method: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, word_tokenizer())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    for load in (load_pretrained, pretrained_layers):
        with pytest.raises(
            BackboneError, match=rf"is quantized \(quant_method {said}\) and dasearch reads full weights"
        ):
            load(folder)


@pytest.mark.parametrize("arguments", ["data formats", "data stats STUDY --json", "--help"])
@pytest.mark.parametrize(("closed", "code"), [(">&-", (0,)), ("| true", (0, 1))])
def test_standard_output_that_nobody_reads(arguments: str, closed: str, code: tuple[int, ...], tmp_path: Path) -> None:
    study = tmp_path / "toy.yaml"
    study.write_text(small_study(tmp_path).yaml())
    command = f"set -o pipefail; {sys.executable} -m dasearch {arguments.replace('STUDY', str(study))} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in code
    assert done.stderr == ""


def test_a_report_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(small_study(tmp_path).yaml())
    assert run_command(["run", "toy.yaml", "--budget", "2", "--no-train"]) == 0
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    for out, said in (
        (".", "is a folder; name a file in it, as in report.html"),
        ("file/x.html", "cannot be written ("),
    ):
        assert run_command(["report", "toy", "--output", "runs", "--out", out]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1

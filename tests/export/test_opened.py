"""Every format, opened in a fresh process without dasearch, gives our scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dasearch.errors import ExportError
from dasearch.export import ExportOptions, export
from dasearch.layout_file import Metric
from dasearch.training.recommender import Recommender
from tests.export.made import QUESTIONS, dataset_of, made, our_scores

Questions = Sequence[tuple[list[str], str | None]]

CLOSE = 1e-5
LAST_DIGITS = 2e-6  # products of small matrices differ by where in memory the loaders put them
HERE = Path(__file__).parent
KINDS = {
    "darec": ("opt", "{}", "SPS-PPS"),
    "choices": ("llama", "{}", "nNA-qPN"),
    "lora": ("llama", repr({"model": {"lora_rank": 4}}), "LtN-SLA"),
    "idle": ("llama", repr({"model": {"kind": "idle"}, "encoder": {"name": "gru4rec"}}), "SPS-PSP"),
    "ra-rec": ("bert", repr({"model": {"kind": "ra-rec"}, "encoder": {"name": "comirec-dr"}}), "PPS-SPP"),
    "e4s-rec": ("opt", repr({"model": {"kind": "e4s-rec"}}), "SN-PS"),
}
GRAPHS = {  # encoders whose code differs in a graph
    **KINDS,
    "bert4rec": ("llama", repr({"model": {"kind": "idle"}, "encoder": {"name": "bert4rec"}}), "PSS"),
    "comirec-sa": ("opt", repr({"model": {"kind": "ra-rec"}, "encoder": {"name": "comirec-sa"}}), "PPS-SPP"),
    "neumf": ("opt", repr({"model": {"kind": "idle"}, "encoder": {"name": "neumf"}}), "PPS-SPP"),
    "gives both": (
        "opt",
        repr({"model": {"kind": "idle", "encoder_scores": 0.5}, "encoder": {"name": "comirec-sa"}}),
        "PSS-SPP",
    ),
    "added": ("opt", repr({"model": {"encoder_scores": 0.5}, "encoder": {"name": "sasrec", "width": 8}}), "SPS-PPP"),
    "fdsa": ("opt", repr({"model": {"kind": "ra-rec"}, "encoder": {"name": "fdsa"}}), "SPS-PPP"),
}


TINY = {"name": "tiny-opt", "layers": 2, "tiny": {"max_tokens": 256}}
REAL = {  # hardly trained, on real purchases: every weight is random anyway
    "darec": {"cf": {"epochs": 0}},
    "idle": {"model": {"kind": "idle"}, "encoder": {"name": "sasrec", "epochs": 0}},
    "ra-rec": {"model": {"kind": "ra-rec"}, "encoder": {"name": "gru4rec", "epochs": 0}},
}


def opened(
    arguments: Sequence[str], tmp_path: Path, python: str | Path = sys.executable, questions: Questions = QUESTIONS
) -> list[torch.Tensor]:
    """For each ``FORM=FOLDER`` its scores ``(questions, items)``, in a process without dasearch."""
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), str(HERE / "open_exports.py"), *arguments],
        input=json.dumps(questions), capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**bare, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [torch.tensor(one) for one in json.loads(done.stdout)["scores"]]


def apart(
    recommender: Recommender, arguments: Sequence[str], tmp_path: Path, questions: Questions = QUESTIONS
) -> list[float]:
    """For each ``FORM=FOLDER`` the largest difference from our scores."""
    return [difference(recommender, one, questions) for one in opened(arguments, tmp_path, questions=questions)]


def difference(recommender: Recommender, scores: torch.Tensor, questions: Questions = QUESTIONS) -> float:
    """The largest from our own."""
    ours = torch.stack([our_scores(recommender, history, user) for history, user in questions])
    return float((scores - ours).abs().max())


FORMS = ("torch", "pt2", "hf")  # transformers, which only hf may import, comes last
Answers = dict[tuple[str, str], torch.Tensor]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Of each format and kind, all opened in one process."""
    there, cases = tmp_path_factory.mktemp("opened"), [(form, kind) for form in FORMS for kind in KINDS]
    for form, kind in cases:
        recommender = made(*KINDS[kind])
        options = ExportOptions(top=len(recommender.items)) if form == "pt2" else None
        export(recommender, form, there / f"{form}-{kind}", options)
    return dict(zip(cases, opened([f"{form}={there / f'{form}-{kind}'}" for form, kind in cases], there), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_torch_hf_and_pt2(kind: str, answers: Answers) -> None:
    recommender = made(*KINDS[kind])
    found = [difference(recommender, answers[form, kind]) for form in FORMS]
    assert max(found) <= CLOSE
    assert abs(found[0] - found[2]) <= LAST_DIGITS  # the same text in one file and in the other


@pytest.mark.slow
def test_real_histories_over_real_items(tmp_path: Path) -> None:
    """Of complete-journey: long rows, repeats, 375 items with their own texts; every model in one process."""
    changes = {kind: repr({**REAL[kind], "backbone": TINY}) for kind in REAL}
    recommenders = {kind: made("tiny-opt", changes[kind], "SPS-PSP", data="complete-journey") for kind in REAL}
    first = recommenders["darec"]
    names, users = [item.identifier for item in first.items], list(first.users)
    sequences = dataset_of("complete-journey").sequences[:20]
    asked = [([names[k] for k in sequence], users[k] if k % 2 else None) for k, sequence in enumerate(sequences)]
    cases = [(form, kind) for form in ("torch", "hf") for kind in REAL]
    folders = [export(recommenders[kind], form, tmp_path / f"{form}-{kind}") for form, kind in cases]
    arguments = [f"{form}={folder}" for (form, _), folder in zip(cases, folders, strict=True)]
    for (form, kind), scores in zip(cases, opened(arguments, tmp_path, questions=asked), strict=True):
        assert difference(recommenders[kind], scores, asked) <= CLOSE, (form, kind)


@pytest.mark.slow
def test_hf_in_the_transformers_before_5(tmp_path: Path, adapterhub: Path) -> None:
    """Every kind, in one process."""
    recommenders = {kind: made(*KINDS[kind]) for kind in KINDS}
    folders = [export(recommender, "hf", tmp_path / kind) for kind, recommender in recommenders.items()]
    found = opened([f"hf={folder}" for folder in folders], tmp_path, adapterhub)
    for (kind, recommender), scores in zip(recommenders.items(), found, strict=True):
        assert difference(recommender, scores) <= CLOSE, kind


@pytest.mark.slow
@pytest.mark.parametrize("case", GRAPHS)
def test_onnx(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    recommender = made(*GRAPHS[case])
    folder = export(recommender, "onnx", tmp_path / "onnx", ExportOptions(top=len(recommender.items)))
    assert apart(recommender, [f"onnx={folder}"], tmp_path)[0] <= CLOSE


def test_the_model_card_tells_data_metrics_layout_and_licence(tmp_path: Path) -> None:
    recommender = made("opt", "{}", "SPS-PPS")
    recommender.results = {"test": {"MRR": 0.125}}
    metric = Metric(name="MRR", value=0.2, low=0.1, high=0.3, split="test")
    recommender.layout_file = recommender.layout_file.model_copy(update={"backbone": "smollm2-135m", "metric": metric})
    card = (export(recommender, "hf", tmp_path / "hf") / "README.md").read_text()
    for said in (
        "license: apache-2.0\n",
        "| MRR of this layout, mean over seeds | test | 0.2000 | 0.1000 to 0.3000 |",
        "| MRR of these weights | test | 0.1250 |  |",
        "`SPS-PPS` (S serial, P parallel): a group for each of the layers 1, 2\n(of 2)",
        "toy, 40 users, 30 items",
        "language model smollm2-135m, under apache-2.0",
    ):
        assert said in card


def test_a_graph_cannot_answer_with_more_items_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--top is 31 and the catalogue has 30 items; give a smaller --top"):
        export(made("opt"), "pt2", tmp_path / "out", ExportOptions(top=31))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ExportError, match=r'onnx needs onnx and onnxscript, not installed here; pip install "dasearch\[export\]"'
    ):
        export(made("opt"), "onnx", tmp_path / "out")

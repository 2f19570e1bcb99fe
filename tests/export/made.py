"""Recommenders of every kind with random weights everywhere, so that a part that is left out shows in the scores."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from dasearch.config import parse_data
from dasearch.data import Dataset, LeaveOneOut, load_dataset
from dasearch.layout import CHOICES, Choice, Layout, Structure
from dasearch.models.named import NAMED
from dasearch.training.loop import Trained
from dasearch.training.preparation import build_model, prepare_study
from dasearch.training.recommender import Recommender, load, save_recommender
from tests.conftest import LAYERS, seeded, tiny_model, toy_dataset, word_tokenizer
from tests.training.studies import small_settings

TOY = "toy"
DATASET = toy_dataset(40, 30)
USER = DATASET.users[3]
QUESTIONS: list[tuple[list[str], str | None]] = [  # a row of three items, the shortest, one that is cut, a known user's
    (["item1", "item2", "item3"], None),
    (["item5"], None),
    ([f"item{i}" for i in range(1, 20)], None),
    (["item7", "item7"], USER),
]
ALPHABET = (
    *CHOICES.values(),
    Choice("narrow", "n", width=2),
    Choice("narrow-parallel", "q", parallel=True, width=3),
    Choice("thin", "t", lora=True, width=2),
)
NOISE = 0.1  # added to every trained weight


@lru_cache(maxsize=8)
def backbone_folder(family: str, layers: int) -> str:
    """A saved random language model."""
    folder = mkdtemp(prefix=f"{family}-")
    tiny_model(family, layers).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def made(
    family: str, changes: str = "{}", letters: str = "SPS-PPS", *, layers: int = LAYERS, data: str = TOY
) -> Recommender:
    """A saved and opened recommender; ``changes`` to its settings as text, so that equal ones are made once."""
    return load(made_folder(family, changes, letters, layers, data), device="cpu")


@lru_cache(maxsize=2)
def dataset_of(data: str) -> Dataset:
    """The toy purchases, or those of a source by name."""
    return DATASET if data == TOY else load_dataset(data, parse_data(data).rules(seed=0))


@lru_cache(maxsize=64)
def made_folder(family: str, changes: str, letters: str, layers: int = LAYERS, data: str = TOY) -> Path:
    """The folder of `made`; fewer groups of letters than layers make r > 1.

    ``family`` may also name real weights, whose first layers are read.
    """
    named = {"name": family, "layers": layers} if family in NAMED else {"name": backbone_folder(family, layers)}
    settings = small_settings(**{"backbone": named, **eval(changes)})
    dataset = dataset_of(data)
    materials = prepare_study(settings, dataset, LeaveOneOut(dataset).development)
    layout = Layout.parse(letters, ALPHABET)
    model = build_model(settings, materials, Structure(layers // layout.layers, layout.has_lora), seed=0)
    generator = seeded(5)
    for _, parameter in model.trainable():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * NOISE)
    trained = cast(Trained, SimpleNamespace(model=model, layout=layout))
    return save_recommender(Path(mkdtemp()) / "model", trained, settings, materials, dataset)


def our_scores(recommender: Recommender, history: Sequence[str], user: str | None) -> Tensor:
    """Of all items, as `Recommender.recommend` ranks them with those of the history."""
    place = {item.identifier: k for k, item in enumerate(recommender.items)}
    found = recommender.recommend(history, len(place), user=user, include_seen=True)
    scores = torch.empty(len(place))
    for one in found:
        scores[place[one.item]] = one.score
    return scores


def opened(path: Path) -> ModuleType:
    """A written file of Python, imported."""
    spec = importlib.util.spec_from_file_location(f"written_{abs(hash(path))}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edited(path: Path, **changes: Any) -> None:
    """A JSON file with other values."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

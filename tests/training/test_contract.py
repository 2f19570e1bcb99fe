"""One contract for every model, ID encoder and kind of backbone: replacing one is a line of the study file."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dasearch.config import EncoderStudy, Precision, StudySettings
from dasearch.data import LeaveOneOut, SequenceBatch
from dasearch.layout import SITES, Layout, Structure
from dasearch.models.base import RecommenderModel
from dasearch.models.id_encoders import ENCODERS
from dasearch.training.evaluation import rank_validation
from dasearch.training.loop import Trained, train
from dasearch.training.materials import StudyContext
from dasearch.training.method import weighted_total
from dasearch.training.preparation import build_model, prepare_study
from dasearch.training.recommender import load, save_recommender
from tests.conftest import ALL_FAMILIES, FAMILIES, LAYERS, seeded, tiny_model, toy_dataset, word_tokenizer
from tests.training.studies import small_settings

PAIRS = [
    *(("darec", {"model": {"collaborative": cf}}, family) for cf in ("mf", "ncf") for family in FAMILIES),
    *(
        (kind, {"model": {"kind": kind}, "encoder": {"name": encoder}}, family)
        for kind in ("idle", "ra-rec")
        for encoder in sorted(ENCODERS)
        for family in ALL_FAMILIES
    ),
]
NAMES = [
    f"{kind}-{(c.get('encoder') or c['model']).get('name') or c['model']['collaborative']}-{f}" for kind, c, f in PAIRS
]
DATASET = toy_dataset(40, 30)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A saved random model per family."""
    found = {}
    for family in ALL_FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        tiny_model(family).save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)
        found[family] = str(folder)
    return found


@dataclasses.dataclass(frozen=True)
class Case:
    """One combination, prepared for training."""

    settings: StudySettings
    materials: StudyContext

    def model(self) -> RecommenderModel:
        return build_model(self.settings, self.materials, seed=0)

    def batch(self) -> SequenceBatch:
        return next(self.materials.method.plan(self.materials, 16).shuffled(16, seeded()))

    def layout(self, text: str) -> Layout:
        return Layout.parse("-".join([text] * LAYERS)).require(LAYERS, len(SITES[self.settings.model.kind]))

    def loss(self, model: RecommenderModel, text: str = "SSS") -> Tensor:
        method = self.materials.method
        layout = model.layout_tensor(self.layout(text))
        return weighted_total(method.losses(model, self.batch(), layout, self.materials, seeded()), method.weights)


@lru_cache(maxsize=64)
def _case(kind: str, folder: str, changes: str) -> Case:
    settings = small_settings(**{**eval(changes), "backbone": {"name": folder}})
    return Case(settings, prepare_study(settings, DATASET, LeaveOneOut(DATASET).development))


@pytest.fixture(params=PAIRS, ids=NAMES)
def case(request: pytest.FixtureRequest, folders: dict[str, str]) -> Case:
    kind, changes, family = request.param
    return _case(kind, folders[family], repr(changes))


def state(model: RecommenderModel, batch: SequenceBatch, layout: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval().states(batch, layout)


@pytest.mark.parametrize("text", ["SSS", "PPP"])
def test_learns_over_a_bfloat16_model(case: Case, text: str) -> None:
    """As on a GPU: frozen weights in bfloat16; trained parameters, ID vectors and losses in float32."""
    half = dataclasses.replace(case, materials=case.materials.computing_in(Precision.BFLOAT16))
    model = half.model()
    assert next(model.backbone.parameters()).dtype is torch.bfloat16
    loss = half.loss(model, text)
    assert float(loss.detach()) == pytest.approx(float(case.loss(case.model(), text).detach()), rel=0.05, abs=0.05)
    loss.backward()
    for _, parameter in model.trainable():
        assert parameter.dtype is torch.float32
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_learns_over_a_bfloat16_model(folders: dict[str, str], family: str) -> None:
    case = _case("darec", folders[family], repr({"model": {"lora_rank": 4}}))
    half = dataclasses.replace(case, materials=case.materials.computing_in(Precision.BFLOAT16))
    models = [build_model(one.settings, one.materials, Structure(lora=True), seed=0) for one in (half, case)]
    for model in models:
        for name, parameter in model.trainable():
            if ".lora." in name:
                parameter.data.normal_(std=0.2, generator=seeded(len(name)))
                assert parameter.dtype is torch.float32
    losses = [one.loss(model, "LLN") for one, model in zip((half, case), models, strict=True)]
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=0.05, abs=0.05)
    losses[0].backward()
    for name, parameter in models[0].trainable():
        if ".lora." in name:
            assert parameter.grad is not None, name
            assert parameter.grad.dtype is torch.float32
            assert bool(parameter.grad.any()), name


def test_only_its_own_parts_learn(case: Case) -> None:
    model = case.model()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainable = dict(model.trainable())
    assert frozen
    assert not any(n.startswith("backbone.") for n in trainable)
    case.loss(model).backward()
    silent = [n for n, p in trainable.items() if p.grad is None]
    assert not silent
    torch.optim.SGD(trainable.values(), lr=0.1).step()
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[n], before) for n, before in frozen.items())


def test_every_site_matters(case: Case) -> None:
    """Each letter of the layout changes the loss of a model whose trained parts are not at their initial values."""
    model = case.model()
    with torch.no_grad():
        for k, (_, parameter) in enumerate(model.trainable()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(k)))
        losses = {text: case.loss(model.eval(), text).item() for text in ("SSS", "PSS", "SPS", "SSP")}
    assert len(set(losses.values())) == 4, losses


def test_padding_and_order_of_rows_change_nothing(case: Case) -> None:
    model = case.model()
    batch, layout = case.batch(), model.layout_tensor(case.layout("SPS"))
    found = state(model, batch, layout)
    assert found.shape == (len(batch.users), model.backbone.width)
    turned = torch.randperm(len(batch.users), generator=seeded())
    other = SequenceBatch(
        dataclasses.replace(batch.rows, tokens=batch.rows.tokens[turned], segments=batch.rows.segments[turned]),
        *(getattr(batch, name)[turned] for name in ("users", "items", "ends", "targets", "histories", "examples")),
    )
    torch.testing.assert_close(state(model, other, layout), found[turned], atol=1e-5, rtol=1e-5)
    wider = dataclasses.replace(
        batch,
        rows=dataclasses.replace(
            batch.rows,
            tokens=torch.nn.functional.pad(batch.rows.tokens, (0, 3)),
            segments=torch.nn.functional.pad(batch.rows.segments, (0, 3), value=-1),
        ),
    )
    torch.testing.assert_close(state(model, wider, layout), found, atol=1e-5, rtol=1e-5)


def test_targets_are_not_read(case: Case) -> None:
    model = case.model()
    batch, layout = case.batch(), model.layout_tensor(case.layout("SSS"))
    blind = dataclasses.replace(batch, targets=torch.full_like(batch.targets, -1))
    assert torch.equal(state(model, batch, layout), state(model, blind, layout))


def test_scores_of_all_items(case: Case) -> None:
    model = case.model()
    layout = model.layout_tensor(case.layout("PSP"))
    with torch.no_grad():
        scores = model.scorer(case.materials.catalogue.item_rows, layout)(state(model, case.batch(), layout))
    assert scores.shape == (len(case.batch().users), len(DATASET.items))
    assert bool(scores.isfinite().all())


def test_training_is_reproducible_and_the_model_loads(case: Case, tmp_path: Path) -> None:
    settings, materials, layout = case.settings, case.materials, case.layout("SPS")
    first, second = (train(settings, materials, layout, settings.trial) for _ in range(2))
    assert [e.losses for e in first.progress.epochs] == [e.losses for e in second.progress.epochs]
    assert first.metrics == second.metrics
    folder = save_recommender(tmp_path / "model", first, settings, materials, DATASET)
    assert_same_scores(first, materials, load(folder, device="cpu"))


def assert_same_scores(trained: Trained, materials: StudyContext, opened: Any) -> None:
    ours = held(trained.model, materials, trained.layout)
    theirs = rank_validation(
        opened.model, opened.catalogue, materials.development, opened.model.layout_tensor(opened.layout)
    )
    np.testing.assert_array_equal(ours.ranks, theirs.ranks)
    np.testing.assert_allclose(ours.losses, theirs.losses, atol=1e-6)
    answer = opened.recommend(["item1", "item2"], k=3)
    known = opened.recommend(["item1", "item2"], k=3, user="u3")
    assert len(answer) == len(known) == 3


def held(model: RecommenderModel, materials: StudyContext, layout: Layout) -> Any:
    return rank_validation(model, materials.catalogue, materials.development, model.layout_tensor(layout))


def test_its_id_model_is_a_baseline(case: Case) -> None:
    development = case.materials.development
    ranks = case.materials.method.baseline_ranks(development.users, development.train, development.valid)
    (name,) = ranks
    own = case.materials.method.settings
    assert name == (
        ENCODERS[own.encoder.name].title if isinstance(own, EncoderStudy) else own.model.collaborative.upper()
    )
    assert ranks[name].min() >= 1
    assert ranks[name].max() <= len(DATASET.items)

"""A recommender is registered everywhere or nowhere."""

from __future__ import annotations

import pytest

from dasearch.config import STUDIES, StudySettings, parse_study
from dasearch.export.plain import KINDS
from dasearch.layout import ModelKind
from dasearch.models.registry import MODELS
from dasearch.search_space import load_search_space
from dasearch.training.preparation import TRAINING_TASKS


def test_every_model_is_in_all_registries() -> None:
    for declared in (MODELS, TRAINING_TASKS, STUDIES, KINDS):
        assert set(declared) == set(ModelKind)


def study_of(kind: ModelKind) -> StudySettings:
    recipe = {"batch_size": 16}
    content = {"name": "one", "model": {"kind": kind.value}, "encoder": {"epochs": 7}, "trial": recipe, "final": recipe}
    return parse_study(content)


@pytest.mark.parametrize("kind", list(ModelKind))
def test_a_study_of_its_settings_has_its_sites(kind: ModelKind) -> None:
    study = study_of(kind)
    assert load_search_space(study.space_name, backbone_layers=2).sites == MODELS[study.model.kind].sites


@pytest.mark.parametrize("kind", list(ModelKind))
def test_without_pretraining_no_data_is_used_before_training(kind: ModelKind) -> None:
    study = study_of(kind)
    quick = study.without_pretraining()
    assert quick.encoder.epochs == 0
    assert getattr(quick, "cf", quick.encoder).epochs == 0
    assert quick.model == study.model

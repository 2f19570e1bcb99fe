"""From a study and its data to everything its trainings share."""

from __future__ import annotations

import dataclasses

import torch

from dasearch.config import DARecStudy, IDLEStudy, RARecStudy, StudySettings
from dasearch.data import Dataset, Development, Examples, select_examples
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.base import RecommenderModel
from dasearch.models.darec import DARec
from dasearch.models.id_encoders import build_encoder
from dasearch.models.idle import IDLEAdapter
from dasearch.models.ra_rec import RARec
from dasearch.models.tiny_opt import Progress
from dasearch.training.darec import DARecMethod
from dasearch.training.idle import IDLEMethod
from dasearch.training.materials import (
    Catalogue,
    Materials,
    PurchaseIndex,
    Shared,
    build_catalogue,
    compute_dtype,
    open_backbone,
    resolve_device,
    text_vectors,
)
from dasearch.training.method import Method, Say
from dasearch.training.ra_rec import RARecMethod
from dasearch.training.seeds import generator_for


def prepare_study(
    settings: StudySettings,
    dataset: Dataset,
    development: Development,
    *,
    say: Say = lambda _: None,
    language_model: Progress | None = None,
) -> Materials:
    """Load the language model, read the catalogue, prepare the study's method; ``say`` is told each step as it begins."""
    say("loading the language model")
    opened = open_backbone(settings, dataset, progress=language_model)
    return prepare(settings, build_catalogue(settings, dataset, *opened), development, say=say)


def prepare(
    settings: StudySettings, catalogue: Catalogue, development: Development, *, say: Say = lambda _: None
) -> Materials:
    """Everything that trainings share, from training and validation data alone."""
    device = resolve_device(settings.device)
    frozen = catalogue.backbone.computing_in(compute_dtype(settings.trial.precision, device), device)
    reading = dataclasses.replace(catalogue, backbone=frozen)
    say("reading the catalogue with the frozen model")
    shared = Shared(
        catalogue,
        development,
        PurchaseIndex(development),
        torch.as_tensor(development.item_counts(), dtype=torch.float32),
        text_vectors(reading, device),
        device,
    )
    method = _method(settings, dataclasses.replace(shared, catalogue=reading), say)
    return Materials(**vars(shared), method=method)


def untrained_model(
    settings: StudySettings,
    backbone: FrozenBackbone,
    *,
    n_users: int,
    n_items: int,
    replace_every: int,
    generator: torch.Generator,
) -> RecommenderModel:
    """A recommender of the study's kind with random weights, to be filled from a file."""
    sizes = {"n_items": n_items, "replace_every": replace_every}
    texts = torch.zeros(n_items, backbone.width)
    assert isinstance(settings, DARecStudy | IDLEStudy | RARecStudy)
    encoder = None
    if not isinstance(settings, DARecStudy) or settings.model.encoder_scores:
        encoder = build_encoder(settings.encoder, n_users, n_items, texts, generator)
    if isinstance(settings, DARecStudy):
        return DARec(backbone, settings.model, n_users=n_users, encoder=encoder, generator=generator, **sizes)
    assert encoder is not None
    if isinstance(settings, IDLEStudy):
        return IDLEAdapter(backbone, settings.model, encoder=encoder, generator=generator, **sizes)
    return RARec(backbone, settings.model, encoder=encoder, generator=generator, **sizes)


def _method(settings: StudySettings, shared: Shared, say: Say) -> Method:
    if isinstance(settings, IDLEStudy):
        return IDLEMethod.prepare(settings, shared, _examples(settings, shared), say)
    if isinstance(settings, RARecStudy):
        return RARecMethod.prepare(settings, shared, _examples(settings, shared), say)
    assert isinstance(settings, DARecStudy)
    examples = None if settings.examples.all else _examples(settings, shared)  # None: every place of a row
    return DARecMethod.prepare(settings, shared, examples, say)


def _examples(settings: StudySettings, shared: Shared) -> Examples:
    wanted = settings.examples
    return select_examples(
        shared.development,
        shared.catalogue.items,
        per_user=wanted.per_user,
        overlap=wanted.overlap,
        diverse=wanted.diverse,
        generator=generator_for(settings.seed, "examples"),
    )


def build_model(settings: StudySettings, materials: Materials, *, replace_every: int, seed: int) -> RecommenderModel:
    """A recommender at its start; the same seed gives every layout the same initial weights."""
    generator = generator_for(settings.seed, "weights", seed)
    return materials.method.build(materials, replace_every=replace_every, generator=generator)

"""Preparation of everything that a study's trainings share."""

from __future__ import annotations

import dataclasses

import torch

from dasearch.config import StudySettings
from dasearch.data import Dataset, Development, Examples, select_examples
from dasearch.layout import PLAIN, ModelKind, Structure
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.base import RecommenderModel
from dasearch.models.id_encoders import build_encoder
from dasearch.models.registry import MODELS
from dasearch.models.tiny_opt import Progress
from dasearch.training.darec import DARecMethod
from dasearch.training.e4s_rec import E4SRecMethod
from dasearch.training.idle import IDLEMethod
from dasearch.training.materials import (
    StudyContext,
    build_catalogue,
    compute_dtype,
    open_backbone,
    resolve_device,
    text_vectors,
)
from dasearch.training.method import TrainingTask
from dasearch.training.ra_rec import RARecMethod
from dasearch.training.ranks import ALONE, Peers
from dasearch.training.seeds import generator_for
from dasearch.training.sharding import require_ranks, shard_frozen
from dasearch.training.shared import Catalogue, PurchaseIndex, Say, SharedInputs

TRAINING_TASKS: dict[ModelKind, type[TrainingTask]] = {
    ModelKind.DAREC: DARecMethod,
    ModelKind.IDLE: IDLEMethod,
    ModelKind.RA_REC: RARecMethod,
    ModelKind.E4S_REC: E4SRecMethod,
}


def prepare_study(
    settings: StudySettings,
    dataset: Dataset,
    development: Development,
    *,
    say: Say = lambda _: None,
    language_model: Progress | None = None,
    peers: Peers = ALONE,
) -> StudyContext:
    """Load the language model, tokenise the catalogue, prepare the study's training task; ``say`` receives a message per step.

    ``peers``, among which the frozen layers may be shared, all call this.
    """
    require_ranks(settings.shard, peers)
    say("loading the language model")
    opened = open_backbone(settings, dataset, progress=language_model)
    shard_frozen(opened[0], settings, resolve_device(settings.device), peers)
    return prepare(settings, build_catalogue(settings, dataset, *opened), development, say=say)


def prepare(
    settings: StudySettings, catalogue: Catalogue, development: Development, *, say: Say = lambda _: None
) -> StudyContext:
    """Prepare the inputs shared by all trainings, from training and validation data only."""
    device = resolve_device(settings.device)
    frozen = catalogue.backbone.computing_in(compute_dtype(settings.trial.precision, device), device)
    reading = dataclasses.replace(catalogue, backbone=frozen)
    say("reading the catalogue with the frozen model")
    shared = SharedInputs(
        catalogue,
        development,
        PurchaseIndex(development),
        torch.as_tensor(development.item_counts(), dtype=torch.float32),
        text_vectors(reading, device),
        device,
    )
    method = _method(settings, dataclasses.replace(shared, catalogue=reading), say)
    return StudyContext(**vars(shared), method=method)


def untrained_model(
    settings: StudySettings,
    backbone: FrozenBackbone,
    structure: Structure,
    *,
    n_users: int,
    n_items: int,
    generator: torch.Generator,
) -> RecommenderModel:
    """A recommender of the study's kind with random weights, to be loaded from a file."""
    encoder = None
    if settings.model.holds_encoder:
        texts = torch.zeros(n_items, backbone.width)
        encoder = build_encoder(settings.encoder, n_users, n_items, texts, generator)
    return MODELS[settings.model.kind].build(
        backbone,
        settings.model,
        n_users=n_users,
        n_items=n_items,
        encoder=encoder,
        generator=generator,
        **structure._asdict(),
    )


def _method(settings: StudySettings, shared: SharedInputs, say: Say) -> TrainingTask:
    examples = _examples(settings, shared) if settings.selects_examples else None
    return TRAINING_TASKS[settings.model.kind].prepare(settings, shared, examples, say)


def _examples(settings: StudySettings, shared: SharedInputs) -> Examples:
    wanted = settings.examples
    return select_examples(
        shared.development,
        shared.catalogue.items,
        per_user=wanted.per_user,
        overlap=wanted.overlap,
        diverse=wanted.diverse,
        generator=generator_for(settings.seed, "examples"),
    )


def build_model(
    settings: StudySettings, materials: StudyContext, structure: Structure = PLAIN, *, seed: int
) -> RecommenderModel:
    """An initialised recommender; the same seed gives the same initial weights for every layout.

    Args:
        settings: the study's settings.
        materials: the study's prepared inputs.
        structure: of the study's search space.
        seed: seed of the initial weights.
    """
    generator = generator_for(settings.seed, "weights", seed)
    return materials.method.build(materials, structure, generator)

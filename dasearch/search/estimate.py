"""Dry run of a study: parameter counts and an estimate of time, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean

from dasearch.config import StudySettings
from dasearch.data import LeaveOneOut
from dasearch.errors import TrainingError
from dasearch.layout import Structure
from dasearch.search.id_models import encoder_seconds
from dasearch.search.objective import at_once, data_bo
from dasearch.search.study import Study
from dasearch.search.trainings import confirmation_trainings, final_trainings
from dasearch.threads import WAITING, Waiting, cores, most_threads, using
from dasearch.training.encoders import needs_training, training_seconds
from dasearch.training.loop import Trained, train_together
from dasearch.training.materials import StudyContext, build_catalogue, language_model_seconds, open_backbone
from dasearch.training.preparation import prepare
from dasearch.training.seeds import generator_for
from dasearch.training.shared import PurchaseIndex
from dasearch.training.stack import Candidate

SAMPLE_USERS = 96  # users of the timed epoch


@dataclass(frozen=True)
class Estimate:
    """Parameters and seconds of a study.

    Attributes:
        side_by_side: trials that train at a time.
        finals_side_by_side: final trainings of one variation at a time.
        preparation_seconds: of tiny-opt and of the study's own ID encoder, where they are not cached yet.
        id_model_seconds: of the ID models of the results table that are not cached yet.
    """

    layouts: int
    side_by_side: int
    finals_side_by_side: int
    trained_parameters: int
    frozen_parameters: int
    preparation_seconds: float
    search_seconds: float
    confirmation_seconds: float
    final_seconds: float
    id_model_seconds: float
    threads: int
    cores: int
    waiting: Waiting

    @property
    def seconds(self) -> float:
        """Total seconds of the study, preparation and ID models included."""
        study = self.search_seconds + self.confirmation_seconds + self.final_seconds
        return self.preparation_seconds + study + self.id_model_seconds


def estimate(study: Study, *, train: bool = True) -> Estimate:
    """Time an epoch of the study's model on a few users, steps of tiny-opt and of ID encoders, and scale them up.

    Collaborative vectors and hard negatives are not counted.

    Args:
        study: to be estimated; nothing is stored.
        train: whether the final training and evaluation follow, as in `Study.run`.
    """
    settings = study.settings.without_pretraining()
    with using(settings.threads):
        return _estimate(study, settings, train=train)


def _estimate(study: Study, settings: StudySettings, *, train: bool) -> Estimate:
    space, dataset = study.searched_space(), study.dataset()
    development = LeaveOneOut(dataset).development
    model_seconds = language_model_seconds(settings, dataset)
    backbone, tokenizer = open_backbone(settings, dataset, trained=not model_seconds)
    share = min(1.0, SAMPLE_USERS / len(development.users))
    sample = development.sample_users(share, generator_for("estimate"))
    materials = prepare(settings, build_catalogue(settings, dataset, backbone, tokenizer), sample)
    search, subset = settings.search, len(data_bo(settings, development).users)
    side_by_side = min(at_once(settings, materials, settings.trial), search.budget)
    candidates = [Candidate(space.all_serial, seed) for seed in range(side_by_side)]
    trained = timed(settings, materials, candidates, space.file.structure)
    pace = fmean(one.progress.epochs[-1].seconds for one in trained) / len(sample.users)
    trial = pace * subset * settings.trial.epochs
    final = pace * len(development.users) * settings.final.epochs
    everyone = replace(materials, development=development, purchases=PurchaseIndex(development))
    frozen = sum(parameter.numel() for parameter in backbone.model.parameters())
    return Estimate(
        space.size,
        side_by_side,
        at_once(settings, materials, settings.final),
        trained[0].parameters,
        frozen,
        model_seconds + _own_encoder_seconds(study.settings, everyone),
        trial * search.budget,
        trial * confirmation_trainings(settings),
        final * final_trainings(settings) if train else 0.0,
        sum(encoder_seconds(settings, everyone)) if train else 0.0,
        settings.threads or most_threads(),
        cores(),
        WAITING,
    )


def _own_encoder_seconds(settings: StudySettings, materials: StudyContext) -> float:
    """Seconds to train the encoder that the study's model reads, if it is not cached yet."""
    if not settings.reads_encoder or not needs_training(settings.encoder, materials, settings.seed):
        return 0.0
    return training_seconds(settings.encoder, materials)


def timed(
    settings: StudySettings, materials: StudyContext, candidates: list[Candidate], structure: Structure
) -> list[Trained]:
    """Train candidates side by side for two epochs, of which the first is a warm-up.

    Raises:
        TrainingError: if one diverges.
    """
    recipe = settings.trial.model_copy(update={"epochs": 2})
    found = []
    outcomes = train_together(settings, materials, candidates, recipe, structure=structure, at_once=len(candidates))
    for outcome in outcomes:
        if isinstance(outcome, TrainingError):
            raise outcome
        found.append(outcome)
    return found

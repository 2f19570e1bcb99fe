"""What a study would cost: counts of parameters and an estimate of time, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass

from dasearch.config import DARecStudy, EncoderStudy, StudySettings
from dasearch.data import LeaveOneOut
from dasearch.search.runner import CONTROLS, data_bo, final_trainings
from dasearch.search.study import Study
from dasearch.threads import WAITING, Waiting, cores, using
from dasearch.training.loop import train
from dasearch.training.materials import build_catalogue, open_backbone
from dasearch.training.preparation import prepare
from dasearch.training.seeds import generator_for
from dasearch.training.work import training_threads

SAMPLE_USERS = 96  # users of the timed epoch


@dataclass(frozen=True)
class Estimate:
    """Parameters and seconds of a study."""

    layouts: int
    trained_parameters: int
    frozen_parameters: int
    search_seconds: float
    confirmation_seconds: float
    final_seconds: float
    trial_threads: int
    final_threads: int
    cores: int
    waiting: Waiting

    @property
    def seconds(self) -> float:
        return self.search_seconds + self.confirmation_seconds + self.final_seconds


def estimate(study: Study) -> Estimate:
    """Time one epoch on a few users and scale it up; tiny-opt's own first training is not counted."""
    settings = quickly(study.settings)
    with using(settings.threads):
        return _estimate(study, settings)


def _estimate(study: Study, settings: StudySettings) -> Estimate:
    space, dataset = study.space(), study.dataset()
    development = LeaveOneOut(dataset).development
    backbone, tokenizer = open_backbone(settings, dataset, trained=False)
    share = min(1.0, SAMPLE_USERS / len(development.users))
    sample = development.sample_users(share, generator_for("estimate"))
    materials = prepare(settings, build_catalogue(settings, dataset, backbone, tokenizer), sample)
    layout = space.all_serial
    recipe = settings.trial.model_copy(update={"epochs": 2})
    every = space.file.replace_every
    trained = train(settings, materials, layout, recipe, replace_every=every)
    pace = trained.progress.epochs[-1].seconds / len(sample.users)
    search, subset = settings.search, len(data_bo(settings, development).users)
    trial = pace * subset * settings.trial.epochs
    final = pace * len(development.users) * settings.final.epochs
    frozen = sum(parameter.numel() for parameter in backbone.model.parameters())
    confirmations = (search.candidates + CONTROLS) * search.confirm_seeds
    return Estimate(
        space.size,
        trained.parameters,
        frozen,
        trial * search.budget,
        trial * confirmations,
        final * final_trainings(settings),
        training_threads(settings, materials, settings.trial),
        training_threads(settings, materials, settings.final),
        cores(),
        WAITING,
    )


def quickly(settings: StudySettings) -> StudySettings:
    """The study without pre-training of ID vectors, which an estimate does not count."""
    if isinstance(settings, DARecStudy):
        return settings.model_copy(update={"cf": settings.cf.model_copy(update={"epochs": 0})})
    assert isinstance(settings, EncoderStudy)
    return settings.model_copy(update={"encoder": settings.encoder.model_copy(update={"epochs": 0, "file": None})})

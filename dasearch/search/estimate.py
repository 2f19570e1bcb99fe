"""What a study would cost: counts of parameters and an estimate of time, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from dasearch.config import StudySettings
from dasearch.data import LeaveOneOut
from dasearch.errors import TrainingError
from dasearch.search.objective import at_once, data_bo
from dasearch.search.study import Study
from dasearch.search.trainings import confirmation_trainings, final_trainings
from dasearch.threads import WAITING, Waiting, cores, most_threads, using
from dasearch.training.loop import Trained, train_together
from dasearch.training.materials import Materials, build_catalogue, open_backbone
from dasearch.training.preparation import prepare
from dasearch.training.seeds import generator_for
from dasearch.training.stack import Candidate

SAMPLE_USERS = 96  # users of the timed epoch


@dataclass(frozen=True)
class Estimate:
    """Parameters and seconds of a study.

    Attributes:
        side_by_side: trials that train at a time.
        finals_side_by_side: final trainings of one variation that do.
    """

    layouts: int
    side_by_side: int
    finals_side_by_side: int
    trained_parameters: int
    frozen_parameters: int
    search_seconds: float
    confirmation_seconds: float
    final_seconds: float
    threads: int
    cores: int
    waiting: Waiting

    @property
    def seconds(self) -> float:
        return self.search_seconds + self.confirmation_seconds + self.final_seconds


def estimate(study: Study) -> Estimate:
    """Time one epoch of a batch on a few users and scale it up; tiny-opt's own first training is not counted."""
    settings = study.settings.without_pretraining()
    with using(settings.threads):
        return _estimate(study, settings)


def _estimate(study: Study, settings: StudySettings) -> Estimate:
    space, dataset = study.searched_space(), study.dataset()
    development = LeaveOneOut(dataset).development
    backbone, tokenizer = open_backbone(settings, dataset, trained=False)
    share = min(1.0, SAMPLE_USERS / len(development.users))
    sample = development.sample_users(share, generator_for("estimate"))
    materials = prepare(settings, build_catalogue(settings, dataset, backbone, tokenizer), sample)
    search, subset = settings.search, len(data_bo(settings, development).users)
    side_by_side = min(at_once(settings, materials, settings.trial), search.budget)
    candidates = [Candidate(space.all_serial, seed) for seed in range(side_by_side)]
    trained = timed(settings, materials, candidates, space.file.replace_every)
    pace = fmean(one.progress.epochs[-1].seconds for one in trained) / len(sample.users)
    trial = pace * subset * settings.trial.epochs
    final = pace * len(development.users) * settings.final.epochs
    frozen = sum(parameter.numel() for parameter in backbone.model.parameters())
    return Estimate(
        space.size,
        side_by_side,
        at_once(settings, materials, settings.final),
        trained[0].parameters,
        frozen,
        trial * search.budget,
        trial * confirmation_trainings(settings),
        final * final_trainings(settings),
        settings.threads or most_threads(),
        cores(),
        WAITING,
    )


def timed(
    settings: StudySettings, materials: Materials, candidates: list[Candidate], replace_every: int
) -> list[Trained]:
    """Train candidates side by side for two epochs, of which the second is warm.

    Raises:
        TrainingError: if one diverges.
    """
    recipe = settings.trial.model_copy(update={"epochs": 2})
    found = []
    outcomes = train_together(
        settings, materials, candidates, recipe, replace_every=replace_every, at_once=len(candidates)
    )
    for outcome in outcomes:
        if isinstance(outcome, TrainingError):
            raise outcome
        found.append(outcome)
    return found

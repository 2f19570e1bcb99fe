"""The ID models that stand in the final table by themselves: which are trained, and how long that takes."""

from __future__ import annotations

import time
from typing import NamedTuple

from dasearch.config import StudySettings
from dasearch.models.id_encoders import ENCODERS, EncoderSettings, IDEncoder
from dasearch.search.events import Listener
from dasearch.training.encoders import needs_training, study_encoder, training_seconds
from dasearch.training.seeds import derive_seed
from dasearch.training.shared import Say, Shared


class Planned(NamedTuple):
    """An ID encoder of the final table."""

    recipe: EncoderSettings
    seed: int


def planned_encoders(settings: StudySettings) -> list[Planned]:
    """An encoder after the other, each with every seed."""
    comparison = settings.comparison
    recipes = [comparison.encoder.model_copy(update={"name": name, "file": None}) for name in comparison.encoders]
    seeds = [derive_seed(settings.seed, "comparison", seed) for seed in range(comparison.seeds)]
    return [Planned(one, seed) for one in recipes for seed in seeds]


def encoder_seconds(settings: StudySettings, materials: Shared) -> list[float]:
    """What each of `planned_encoders` will need on this machine, at most; nothing where the cache holds it."""
    paces: dict[str, float] = {}  # one seed takes as long as another
    found = []
    for recipe, seed in planned_encoders(settings):
        is_new = needs_training(recipe, materials, seed)
        if is_new and recipe.name not in paces:
            paces[recipe.name] = training_seconds(recipe, materials)
        found.append(paces[recipe.name] if is_new else 0.0)
    return found


def train_encoders(
    settings: StudySettings, materials: Shared, listener: Listener, seconds: list[float]
) -> dict[str, list[IDEncoder]]:
    """The ID encoders of the final table by their titles, one a seed, from the cache where they were trained before.

    Args:
        seconds: as of `encoder_seconds`.
    """
    found: dict[str, list[IDEncoder]] = {}
    planned = planned_encoders(settings)
    for index, (recipe, seed) in enumerate(planned):
        say = _telling(listener, f"{index + 1}/{len(planned)}  ", seconds[index], sum(seconds[index + 1 :]))
        found.setdefault(ENCODERS[recipe.name].title, []).append(study_encoder(recipe, materials, seed, say))
        listener.left(sum(seconds[index + 1 :]))
    return found


def _telling(listener: Listener, place: str, own: float, later: float) -> Say:
    """Tells what an encoder's training says with its place, and the time left: its ``own`` and that of ``later`` ones."""
    began = time.perf_counter()

    def say(text: str) -> None:
        listener.left(later + max(0.0, own - (time.perf_counter() - began)))
        listener.says(type(text)(f"{place}{text}"))

    return say

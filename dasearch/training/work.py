"""How large a training's steps are, and how many threads they are given."""

from __future__ import annotations

import numpy as np

from dasearch.config import Recipe, StudySettings
from dasearch.threads import fitting, most_threads
from dasearch.training.materials import Materials


def step_work(materials: Materials, recipe: Recipe, *, candidates: int = 1) -> int:
    """Rows x tokens x width of one step, by the mean user: the numbers that an operation of the frozen model goes through."""
    catalogue = materials.catalogue
    row_format, sentences = catalogue.row_format, catalogue.sentences
    lengths = [len(sequence) - 1 for sequence in materials.development.train]
    items = np.clip(lengths, 1, row_format.max_items).mean()
    tokens = len(row_format.opening) + items * (sentences.lengths.mean() + 1)
    return int(candidates * recipe.batch_size * min(tokens, row_format.max_tokens) * catalogue.backbone.width)


def training_threads(settings: StudySettings, materials: Materials, recipe: Recipe, *, candidates: int = 1) -> int:
    """The study's ``threads``, or what serves this many candidates side by side."""
    if settings.threads is not None:
        return settings.threads
    return fitting(step_work(materials, recipe, candidates=candidates), most=most_threads())

"""DARec models with random weights as `dasearch.load` gives them, of any depth, family and layout."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from dasearch.data import evaluation_plan
from dasearch.layout import Layout
from dasearch.models.darec import DARec
from dasearch.training.materials import build_catalogue
from dasearch.training.recommender import Recommender, catalogue_dataset, layout_file
from tests.conftest import seeded, tiny_backbone, toy_dataset, word_tokenizer
from tests.export.made import ALPHABET
from tests.models.test_darec import loud
from tests.training.studies import small_settings

USERS, ITEMS = 6, 9


def darec_model(
    family: str, layout: str, *, layers: int = 2, every: int = 1, seed: int = 0, **model: object
) -> Recommender:
    """A recommender whose every trained number is far from zero."""
    backbone, dataset = tiny_backbone(family, layers), toy_dataset(USERS, ITEMS)
    settings = small_settings(model={"cf_width": 6, **model})
    parsed = Layout.parse(layout, ALPHABET)
    options = {"n_users": USERS, "n_items": ITEMS, "replace_every": every, "generator": seeded(seed)}
    options["lora"] = parsed.has_lora
    trained = loud(DARec(backbone, settings.model, **options), scale=0.3)
    catalogue = build_catalogue(settings, catalogue_dataset("toy", dataset.items), backbone, word_tokenizer())
    file = layout_file(settings, SimpleNamespace(model=trained, layout=parsed), None)
    users = {user: place for place, user in enumerate(dataset.users)}
    return Recommender(trained, parsed, catalogue, dataset.items, users, settings, file, results={})


def rows_of(recommender: Recommender) -> SimpleNamespace:
    """Rows of all users' histories."""
    dataset = toy_dataset(USERS, ITEMS)
    ((_, batch),) = evaluation_plan(
        torch.arange(USERS).numpy(),
        list(dataset.sequences),
        None,
        recommender.catalogue.sentences,
        recommender.catalogue.row_format,
    ).by_length(USERS)
    return batch

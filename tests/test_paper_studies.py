"""The five studies of DARec's own data carry the paper's settings (tables 1 and 3, sec. 3.1), number by number."""

from __future__ import annotations

import re

import pytest

from dasearch.config import DARecStudy, load_study
from dasearch.data import Core, Duplicates, Ties
from dasearch.shipped import shipped

# name: category file, batch, b, lambda 1 to 3 (table 3), users, items, #Inter., Avg. Items (table 1)
PAPER = {
    "arts": ("Arts_Crafts_and_Sewing", 5, 0.04, 0.1, 1e-6, 0.001, 56_083, 22_685, 364_356, 8.50),
    "scientific": ("Industrial_and_Scientific", 6, 0.2, 0.2, 1e-3, 0.1, 10_973, 5_193, 54_183, 6.94),
    "instruments": ("Musical_Instruments", 7, 0.1, 0.2, 1e-3, 0.05, 27_518, 10_535, 171_108, 8.22),
    "pantry": ("Prime_Pantry", 8, 0.2, 0.2, 1e-6, 0.1, 14_178, 4_961, 102_661, 9.24),
    "games": ("Video_Games", 8, 0.06, 0.05, 1e-3, 0.01, 55_126, 17_277, 356_954, 8.48),
}


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_the_papers(name: str) -> None:
    category, batch, b, align, contrastive, collaborative, *_ = PAPER[name]
    study = load_study(name)
    assert isinstance(study, DARecStudy)
    data, losses = study.data, study.losses
    assert data.source.endswith(f"/{category}_5.json.gz")
    assert (data.format, data.ties, data.core) == ("amazon-2018", Ties.KEEP, Core.ONE_PASS)
    assert (data.duplicates, data.min_rating, data.min_user_interactions) == (Duplicates.KEEP, None, 0)
    assert (data.min_item_interactions, data.bo_fraction, data.max_items, data.item_tokens) == (4, b, 50, 30)
    assert (data.hard_negative_fraction, data.mf_rank) == (0.005, 1000)
    assert (losses.align, losses.contrastive, losses.collaborative) == (align, contrastive, collaborative)
    assert (losses.anchors, losses.negatives) == (1, 5)
    assert (study.backbone.name, study.backbone.layers, study.space_name) == ("facebook/opt-125m", None, "darec")
    assert (study.model.bottleneck, study.search.budget, study.final.epochs) == (64, 30, 40)
    for recipe in (study.trial, study.final):
        assert (recipe.batch_size, recipe.accumulate, recipe.lr) == (batch, 1, 5e-5)
        assert (recipe.warmup, recipe.weight_decay, recipe.clip) == (0.06, 0.01, 1.0)


@pytest.mark.parametrize("name", PAPER)
def test_counts_to_check_against_are_table_1(name: str) -> None:
    *_, users, items, train, mean = PAPER[name]
    text = (shipped("studies") / f"{name}.yaml").read_text()
    comment = next(line for line in text.splitlines() if "train interactions" in line and "users" in line)
    found = [float(number.replace(",", "")) for number in re.findall(r"[\d,.]+", comment)]
    assert found == [users, items, train, train + 2 * users, mean]
    assert train / users + 2 == pytest.approx(mean, abs=0.0051)


def test_online_retail_is_read_by_visit() -> None:
    study = load_study("online-retail")
    assert (study.data.ties, study.data.bo_fraction, study.data.max_items) == (Ties.ONE, 0.25, 10)
    assert study.trial == load_study("amazon-scientific-paper").trial

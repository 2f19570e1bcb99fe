"""Ranks against a slow reference, the baselines, the collaborative model and tiny-opt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dasearch.data import LeaveOneOut
from dasearch.layout import Layout
from dasearch.models.tiny_opt import TinyOPTSettings, content_hash, tiny_opt
from dasearch.training import evaluation
from dasearch.training.baselines import markov_ranks, popularity_ranks
from dasearch.training.darec import pretrain_collaborative
from dasearch.training.encoders import study_encoder
from dasearch.training.evaluation import final_ranks, rank_validation, validation_plan
from dasearch.training.loop import train
from dasearch.training.preparation import build_model
from dasearch.training.shared import PurchaseIndex
from tests.conftest import seeded, toy_dataset
from tests.training.studies import materials, small_settings

LAYOUT = Layout.parse("SPS-PPS")


def test_ranks_equal_one_user_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small_settings()
    ready = materials(settings)
    model = build_model(settings, ready, seed=0).eval()
    bits = model.layout_tensor(LAYOUT)
    found = rank_validation(model, ready.catalogue, ready.development, bits)
    monkeypatch.setattr(evaluation, "SCORES_IN_MEMORY", 30)
    monkeypatch.setattr(evaluation, "CPU_BATCH", 1)
    again = rank_validation(model, ready.catalogue, ready.development, bits)
    assert np.array_equal(found.ranks, again.ranks)
    np.testing.assert_allclose(found.losses, again.losses, rtol=1e-4)
    assert len(found.ranks) == 60
    assert found.ranks.min() >= 1
    assert found.ranks.max() <= 40


@pytest.mark.parametrize("kind", ["darec", "idle", "ra-rec", "e4s-rec"])
def test_an_encoders_scores_are_added(kind: str) -> None:
    """Ranks are those of ``own + weight * encoder's``, by hand; the training is that of the model alone."""
    encoder = {"name": "comirec-sa", "width": 8, "epochs": 2, "history": 6}
    alone = small_settings(model={"kind": kind}, encoder=encoder)
    both = small_settings(model={"kind": kind, "encoder_scores": 3.0}, encoder=encoder)
    layout = Layout.parse("SP-PP" if kind == "e4s-rec" else "SPS-PPS")
    plain, added = (
        train(one, materials(one), layout, one.trial.model_copy(update={"epochs": 1})) for one in (alone, both)
    )
    assert plain.progress.epochs[0].losses == added.progress.epochs[0].losses
    ready = materials(both)
    development, gates = ready.development, plain.model.layout_tensor(layout)
    held = rank_validation(added.model, ready.catalogue, development, gates)
    trained = study_encoder(both.encoder, ready, both.seed, lambda _: None)
    batches = validation_plan(ready.catalogue, development).by_length(7)
    with torch.inference_mode():
        scorer = plain.model.eval().scorer(ready.catalogue.item_rows, gates)
        for places, batch in batches:
            scores = scorer(plain.model.states(batch, gates)) + 3.0 * trained.scores(batch.users, batch.histories)
            own = scores.gather(1, batch.at_last(batch.targets)[:, None])
            assert (1 + (scores > own).sum(1)).tolist() == held.ranks[places].tolist()
    assert rank_validation(plain.model, ready.catalogue, development, gates).ranks.tolist() != held.ranks.tolist()


def test_test_ranks_read_the_whole_history() -> None:
    settings = small_settings()
    ready = materials(settings)
    model = build_model(settings, ready, seed=0).eval()
    split = LeaveOneOut(toy_dataset(60, 40))
    ranks = final_ranks(model, ready.catalogue, split.open_test(), model.layout_tensor(LAYOUT))
    assert len(ranks) == 60
    assert not np.array_equal(
        ranks, rank_validation(model, ready.catalogue, split.development, model.layout_tensor(LAYOUT)).ranks
    )


def test_popularity_and_markov_by_brute_force() -> None:
    dataset = toy_dataset(30)
    split = LeaveOneOut(dataset)
    development, test = split.development, split.open_test()
    n = len(dataset.items)
    counts, chain = np.zeros(n), np.zeros((n, n))
    for sequence in development.train:
        np.add.at(counts, sequence, 1)
        np.add.at(chain, (sequence[:-1], sequence[1:]), 1)
    chain /= np.maximum(chain.sum(1, keepdims=True), 1)
    popular, markov = (
        popularity_ranks(development, test.target),
        markov_ranks(development, test.history, test.target, visits=3),
    )
    for u, (history, target) in enumerate(zip(test.history, test.target, strict=True)):
        assert popular[u] == (counts >= counts[target]).sum()
        scores = np.array([chain[history[-3:], item].sum() for item in range(n)])
        ahead = (scores > scores[target] + 1e-9).sum() + (np.abs(scores - scores[target]) <= 1e-9).sum()
        assert markov[u] == ahead


def test_negatives_for_bpr_were_not_bought() -> None:
    development = LeaveOneOut(toy_dataset(60, 40)).development
    index = PurchaseIndex(development)
    users = torch.arange(60).repeat(50)
    drawn = index.sample_negatives(users, seeded(), rounds=30)
    bought = {(u, int(i)) for u, sequence in enumerate(development.train) for i in sequence}
    assert not bought & set(zip(users.tolist(), drawn.tolist(), strict=True))
    pairs = index.pairs()
    assert set(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True)) == bought


def test_collaborative_training_raises_what_was_bought() -> None:
    settings = small_settings(cf={"epochs": 60, "lr": 1e-2})
    development = LeaveOneOut(toy_dataset(60, 40)).development
    index = PurchaseIndex(development)
    state = pretrain_collaborative(settings, development, index)
    model = build_model(settings, materials(settings), seed=0).cf
    model.load_state_dict(state)
    users, items = index.pairs()
    negatives = index.sample_negatives(users, seeded(), rounds=30)
    with torch.no_grad():
        right = (model.scores(users, items) > model.scores(users, negatives)).float().mean()
    assert right > 0.8


def test_tiny_opt_learns_is_cached_and_repeats(tmp_path: Path) -> None:
    sentences = [f"title w{i} w{i + 3} brand b{i % 3}" for i in range(30)]
    settings = TinyOPTSettings(
        layers=1, width=16, heads=2, ffn=32, vocabulary=300, max_tokens=64, steps=60, row_tokens=48
    )
    losses: list[float] = []
    model, tokenizer = tiny_opt(
        sentences, settings, cache=tmp_path / "a", progress=lambda _s, _n, loss: losses.append(loss)
    )
    assert len(losses) == 60
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    again, _ = tiny_opt(sentences, settings, cache=tmp_path / "a", progress=lambda *_: pytest.fail("trained again"))
    other, _ = tiny_opt(sentences, settings, cache=tmp_path / "b")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, other.state_dict()[name])
    assert tokenizer.decode(tokenizer("title w3 Ünïcode 日本")["input_ids"]).strip() == "title w3 Ünïcode 日本"
    assert content_hash(sentences, settings) != content_hash(sentences[:-1], settings)
    assert [p.name for p in (tmp_path / "a").iterdir()] == [content_hash(sentences, settings)]


def test_interrupted_tiny_opt_leaves_nothing(tmp_path: Path) -> None:
    def die(step: int, _steps: int, _loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    settings = TinyOPTSettings(layers=1, width=16, heads=2, ffn=32, vocabulary=300, steps=5, row_tokens=16)
    with pytest.raises(KeyboardInterrupt):
        tiny_opt(["a b c"], settings, cache=tmp_path, progress=die)
    assert not list(tmp_path.iterdir())

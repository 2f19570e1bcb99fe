"""Training: learning, bit-for-bit reproducibility, resuming from a checkpoint, and the effect of every option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dasearch.config import Recipe, StudySettings
from dasearch.errors import StudyError, TrainingError
from dasearch.layout import Layout
from dasearch.models.darec import Variation
from dasearch.training.baselines import popularity_ranks
from dasearch.training.checkpoints import load_tensors, save_tensors
from dasearch.training.evaluation import held_out
from dasearch.training.loop import Trained, train
from dasearch.training.method import weighted_total
from dasearch.training.metrics import summarise
from dasearch.training.preparation import build_model
from dasearch.training.progress import Epoch
from dasearch.training.stack import Candidate, Ground, Run, Stack
from tests.conftest import seeded
from tests.training.studies import materials, small_settings

LAYOUT = Layout.parse("SPS-PPS")


def run(recipe: dict[str, Any] | None = None, *, layout: Layout = LAYOUT, seed: int = 0, **changes: Any) -> Trained:
    settings = small_settings(**changes)
    wanted = settings.trial.model_copy(update=recipe or {})
    return train(settings, materials(settings), layout, wanted, seed=seed)


def same_weights(first: Trained, second: Trained) -> bool:
    ours, theirs = dict(first.model.trainable()), dict(second.model.trainable())
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_learns_the_ring() -> None:
    """Items form a ring, so the next item is almost determined."""
    trained = run({"epochs": 12, "lr": 1e-2})
    first, last = trained.progress.epochs[0], trained.progress.best
    assert last.losses["sequence"] < first.losses["sequence"]
    development = materials(small_settings()).development
    popular = summarise(popularity_ranks(development, development.valid)).mrr
    assert last.metrics["MRR"] > 2 * popular


def test_training_is_reproducible_bit_for_bit() -> None:
    first, second = run(), run()
    assert [(e.losses, e.metrics) for e in first.progress.epochs] == [
        (e.losses, e.metrics) for e in second.progress.epochs
    ]
    assert same_weights(first, second)


def test_global_seed_does_not_matter() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = run()
        torch.manual_seed(2)
        second = run()
    assert same_weights(first, second)


def test_layouts_and_seeds_differ() -> None:
    assert not same_weights(run(), run(seed=1))
    assert not same_weights(run(), run(layout=Layout.parse("PPP-PPP")))


def stack(settings: StudySettings, recipe: Recipe, *layouts: Layout) -> Stack:
    ground = Ground(settings, materials(settings), recipe)
    return Stack(ground, [Run.begin(ground, Candidate(layout), k, {}) for k, layout in enumerate(layouts)])


def test_initial_weights_do_not_depend_on_the_layout() -> None:
    settings = small_settings()
    first, second = (stack(settings, settings.trial, layout) for layout in (LAYOUT, Layout.parse("PPP-SSS")))
    assert torch.equal(first.parameters.matrix, second.parameters.matrix)
    for (mine, _), (theirs, _) in zip(first.batches(), second.batches(), strict=True):
        assert torch.equal(mine.rows.tokens, theirs.rows.tokens)


@pytest.mark.parametrize("average", [None, 0.9])
@pytest.mark.parametrize("after", [1, 2])
def test_a_killed_training_resumes_to_the_same_result(tmp_path: Path, after: int, average: float | None) -> None:
    settings = small_settings()
    recipe = Recipe(epochs=3, batch_size=8, lr=5e-3, average=average)
    whole = train(settings, materials(settings), LAYOUT, recipe)

    def die(epoch: Epoch) -> None:
        if epoch.number == after - 1:
            raise KeyboardInterrupt

    path = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(settings, materials(settings), LAYOUT, recipe, checkpoint=path, on_epoch=die)
    heard: list[int] = []
    resumed = train(
        settings, materials(settings), LAYOUT, recipe, checkpoint=path, on_epoch=lambda e: heard.append(e.number)
    )
    assert heard == list(range(after, 3))
    assert [(e.losses, e.metrics) for e in resumed.progress.epochs] == [
        (e.losses, e.metrics) for e in whole.progress.epochs
    ]
    assert same_weights(whole, resumed)


def test_the_checkpoint_of_another_training_is_ignored(tmp_path: Path) -> None:
    settings, path = small_settings(), tmp_path / "c.safetensors"
    train(settings, materials(settings), Layout.parse("PPP-PPP"), settings.trial, checkpoint=path)
    assert same_weights(train(settings, materials(settings), LAYOUT, settings.trial, checkpoint=path), run())


def test_a_checkpoint_of_other_settings_is_ignored(tmp_path: Path) -> None:
    """As after an interrupted `dasearch train` that is started again with another --set."""
    path, changes = tmp_path / "c.safetensors", {"losses": {"align": 1.0}}
    settings, other = small_settings(), small_settings(**changes)
    train(settings, materials(settings), LAYOUT, settings.trial, checkpoint=path)
    assert same_weights(train(other, materials(other), LAYOUT, other.trial, checkpoint=path), run(**changes))


def test_damaged_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"x": 1})
    assert load_tensors(path)[1] == {"x": 1}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="is damaged"):
        load_tensors(path)
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_early_stopping_keeps_the_best_epoch() -> None:
    trained = run({"epochs": 30, "lr": 3e-2, "patience": 2})
    scores = [e.metrics["NDCG@10"] for e in trained.progress.epochs]
    best = scores.index(max(scores))
    assert trained.progress.best_epoch == best
    assert len(scores) == min(30, best + 3)
    assert trained.metrics.ndcg == max(scores)


def test_an_average_is_that_of_the_weights_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its closed form; training continues from the last weights, as without it."""
    settings, decay = small_settings(), 0.8
    seen: list[torch.Tensor] = []
    take = Stack.take

    def watched(self: Stack, group: Any) -> None:
        take(self, group)
        seen.append(self.parameters.matrix[0].double())

    plain = run({"epochs": 2})
    monkeypatch.setattr(Stack, "take", watched)
    found = run({"epochs": 2, "average": decay})
    for mine, theirs in zip(found.progress.epochs, plain.progress.epochs, strict=True):
        assert mine.losses == theirs.losses
        assert mine.metrics != theirs.metrics
    steps = len(seen) // 2 * (found.progress.best_epoch + 1)
    weights = decay ** torch.arange(steps - 1, -1, -1.0, dtype=torch.float64)
    expected = (weights[:, None] * torch.stack(seen[:steps])).sum(0) / weights.sum()
    line = stack(settings, settings.trial, LAYOUT).ground.flat.line(dict(found.model.named_parameters()))
    torch.testing.assert_close(line.double(), expected, atol=1e-6, rtol=1e-5)
    assert held_metrics(found, settings) == {**found.progress.best.metrics}


def held_metrics(trained: Trained, settings: StudySettings) -> dict[str, float]:
    """Validation metrics of a finished training's model."""
    ground = Ground(settings, materials(settings), settings.trial)
    layout = trained.model.layout_tensor(trained.layout)
    (held,) = held_out(trained.model, ground.materials.catalogue, ground.validation, layout)
    return {**summarise(held.ranks).record(), "loss": float(held.losses.mean())}


def test_accumulation_halves_the_steps() -> None:
    settings = small_settings()
    once = stack(settings, settings.trial, LAYOUT)
    twice = stack(settings, settings.trial.model_copy(update={"accumulate": 2}), LAYOUT)
    assert twice.ground.steps_per_epoch == -(-once.ground.steps_per_epoch // 2)
    twice.epoch(0)
    steps = {int(state["step"]) for state in twice.optimizer.state.values()}
    assert steps == {twice.ground.steps_per_epoch}


def test_a_diverging_loss_is_one_sentence() -> None:
    with pytest.raises(TrainingError, match="the loss of SPS-PPS is not a finite number; lower the learning rate"):
        run({"lr": 1e30, "clip": 1e30, "epochs": 5}, losses={"contrastive": 0.0})


def terms(**changes: Any) -> dict[str, float]:
    settings = small_settings(**changes)
    ready = materials(settings)
    model = build_model(settings, ready, seed=0)
    batch = next(ready.method.plan(ready, 8).shuffled(8, seeded()))
    found = ready.method.losses(model, batch, model.layout_tensor(LAYOUT), ready, seeded())
    return {**{k: v.item() for k, v in found.items()}, "total": weighted_total(found, ready.method.weights).item()}


def test_total_is_the_weighted_sum() -> None:
    found = terms(losses={"align": 0.3, "contrastive": 0.2, "collaborative": 0.7})
    parts = found["sequence"] + 0.3 * found["align"] + 0.2 * found["contrastive"] + 0.7 * found["collaborative"]
    assert found["total"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "present"),
    [
        ({"losses": {"align": 0.0, "contrastive": 0.0, "collaborative": 0.0}}, {"sequence"}),
        ({"losses": {"align": 0.0}}, {"sequence", "contrastive", "collaborative"}),
        ({"losses": {"contrastive": 0.0}}, {"sequence", "align", "collaborative"}),
        ({"model": {"cf_mode": "frozen"}}, {"sequence", "align", "contrastive"}),
        ({"model": {"variation": "llmrec"}}, {"sequence"}),
        ({"model": {"variation": "darec-base"}}, {"sequence", "align", "contrastive"}),
    ],
)
def test_terms_by_option(changes: dict[str, Any], present: set[str]) -> None:
    assert set(terms(**changes)) == present | {"total"}


CHANGED = [
    {"losses": {"reduction": "sum"}},
    {"losses": {"temperature": 0.1}},
    {"losses": {"anchors": 2}},
    {"losses": {"negatives": 1}},
    {"losses": {"align_items": 1}},
    {"model": {"activation": "gelu", "adapter_init": "normal"}},
    {"model": {"activation": "none", "adapter_init": "normal"}},
    {"model": {"bottleneck": 8}},
    {"model": {"parallel_reduce": "sum"}},
    {"model": {"parallel_residual": False}},
    {"model": {"rec_adapter_site": "router_output"}},
    {"model": {"mask_mode": "post_softmax"}},
    {"model": {"attn_scale": "model"}},
    {"model": {"collaborative": "mf"}},
    {"model": {"ncf_embedding": "concat"}},
    {"model": {"cf_width": 4}},
    {"model": {"cf_mode": "frozen"}},
    {"model": {"collab_proj": "per_layer"}},
    {"model": {"collab_in_align": False}},
    {"model": {"collab_stop_grad": True}},
    {"model": {"prompt_group": False}},
    {"model": {"head_bias": "zero"}},
    {"model": {"head_rows": "zero"}},
    {"model": {"head_rows": "normal"}},
    {"model": {"variation": "both-causal"}},
    {"cf": {"epochs": 0}},
    {"data": {"max_items": 2}},
    {"data": {"item_tokens": 2}},
    {"data": {"hard_negative_fraction": 0.5}},
    {"data": {"mf_rank": 1}, "losses": {"contrastive": 5.0}},
    {"trial": {"weight_decay": 0.5}},
    {"trial": {"warmup": 0.5}},
    {"trial": {"clip": 1e-3}},
    {"trial": {"accumulate": 2}},
    {"trial": {"average": 0.9}},
    {"trial": {"rates": {"head": 0.5}}},
    {"backbone": {"tiny": {"seed": 1}}},
    {"seed": 1},
]


def fingerprint(changes: dict[str, Any]) -> tuple[Any, ...]:
    settings = small_settings(**changes)
    epochs = train(settings, materials(settings), LAYOUT, settings.trial).progress.epochs
    return tuple((*e.losses.items(), *e.metrics.items()) for e in epochs)


@pytest.fixture(scope="module")
def plain() -> tuple[Any, ...]:
    return fingerprint({})


@pytest.mark.parametrize("changes", CHANGED, ids=str)
def test_every_option_of_the_study_file_reaches_training(changes: dict[str, Any], plain: tuple[Any, ...]) -> None:
    assert fingerprint(changes) != plain


@pytest.mark.parametrize("variation", list(Variation))
def test_every_variation_trains(variation: Variation) -> None:
    trained = run(model={"variation": variation.value})
    assert 0 < trained.metrics.mrr <= 1
    assert trained.parameters == sum(p.numel() for _, p in trained.model.trainable())
    assert trained.peak_memory > 2**20
    assert trained.seconds > 0


def test_variation_two_is_all_serial_darec() -> None:
    serial = Layout.all_serial(2)
    first, second = run(layout=serial, model={"variation": "variation-2"}), run(layout=serial)
    assert same_weights(first, second)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_trains_on_a_gpu_in_bfloat16() -> None:
    trained = run({"epochs": 12, "lr": 1e-2}, device="cuda")
    assert trained.metrics.mrr > 0.1  # popularity is at 0.05
    assert trained.model.head.weight.dtype is torch.float32


@pytest.mark.parametrize("kind", ["darec", "e4s-rec"])
def test_a_recipes_dropout_overrides_the_models(kind: str) -> None:
    own = small_settings(model={"kind": kind, "dropout": 0.4})
    other = small_settings(model={"kind": kind, "dropout": 0.1}, trial={"dropout": 0.4})
    layout = Layout.parse("SP-PP" if kind == "e4s-rec" else "SPS-PPS")
    first, second, third = (
        train(study, materials(study), layout, recipe).progress.epochs
        for study, recipe in ((own, own.trial), (other, other.trial), (other, other.final))
    )
    assert [epoch.losses for epoch in first] == [epoch.losses for epoch in second]
    assert [epoch.losses for epoch in first] != [epoch.losses for epoch in third]


def test_the_record_of_a_recipe_without_dropout_is_unchanged() -> None:
    study = small_settings()
    assert "dropout" not in study.trial.record()
    assert study.trial.model_copy(update={"dropout": 0.0}).record()["dropout"] == 0.0


def test_a_model_without_dropout_refuses_one() -> None:
    with pytest.raises(StudyError, match=r"idle has no dropout; remove trial\.dropout"):
        small_settings(model={"kind": "idle"}, trial={"dropout": 0.1})

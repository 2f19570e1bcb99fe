"""Concurrent candidates: each trains, resumes and diverges like a separate training."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dasearch.config import Recipe, StudySettings
from dasearch.data import SequenceBatch
from dasearch.errors import TrainingError
from dasearch.layout import CHOICES, Choice, Layout, Structure
from dasearch.models import darec as darec_module
from dasearch.models.base import RecommenderModel
from dasearch.models.stacking import Flat, Linear, StackedParameters, Table
from dasearch.threads import using
from dasearch.training.darec import DARecDrawn
from dasearch.training.graphs import StepGraphs, tensors_of
from dasearch.training.loop import Trained, _threads_of_one, train, train_together
from dasearch.training.method import Drawn
from dasearch.training.progress import Epoch
from dasearch.training.stack import Candidate, Ground, Run, Stack
from tests.conftest import seeded
from tests.training.studies import materials, small_settings

LAYERS = 2
LAYOUTS = ("SPS-PPS", "PPP-PSP", "SSS-SPP")
VARIED: list[dict[str, Any]] = [
    {},
    *({"model": {"variation": name}} for name in ("variation-2", "darec-base", "llmrec", "both-causal")),
    {"model": {"cf_mode": "frozen"}},
    {"model": {"item_ids": "embedding", "item_key": True, "user_key": "history", "head_states": "whitened"}},
    {
        "model": {"item_ids": "encoder", "user_key": "none", "encoder_scores": 0.5},
        "encoder": {"name": "sasrec", "width": 8, "epochs": 1},
    },
    {"model": {"item_ids": "collaborative", "user_key": "none", "dropout": 0.3}, "losses": {"contrastive": 0.0}},
    {"model": {"item_key": True, "collab_proj": "per_layer", "variation": "both-causal", "dropout": 0.2}},
    {"model": {"item_ids": "collaborative", "variation": "llmrec", "dropout": 0.2, "head_states": "whitened"}},
    {"model": {"cf_mode": "frozen"}, "cf": {"epochs": 0}},  # each seed has frozen vectors of its own
    {"model": {"collab_proj": "per_layer", "collaborative": "mf"}},
    {"model": {"mask_mode": "post_softmax"}},
    {"model": {"head_text": True, "router_start": 0.8, "dropout": 0.2}},
    {"model": {"parallel_reduce": "sum", "parallel_residual": False, "rec_adapter_site": "router_output"}},
    {"losses": {"anchors": 2, "align_items": 2}, "trial": {"accumulate": 2}},
    {"losses": {"contrastive": 0.0, "collaborative": 0.0, "reduction": "sum"}},
    {"examples": {"per_user": 1}},
    {"trial": {"average": 0.9}},
    {"trial": {"rates": {"adapters": 4, "head": 0.5}}},
    *({"model": {"kind": kind}} for kind in ("idle", "ra-rec")),
    *({"model": {"kind": kind, "variation": "frozen"}} for kind in ("idle", "ra-rec")),
    {
        "model": {
            "kind": "idle",
            "head": "dot_item_text",
            "refine": "scalar_gate",
            "projection": "shared",
            "pool": "mean",
        }
    },
    {"model": {"kind": "idle", "refine": "concat"}},
    *(
        {"model": {"kind": kind, "encoder_scores": 0.5}, "encoder": {"name": "comirec-sa"}}
        for kind in ("idle", "ra-rec")
    ),
    {"model": {"kind": "ra-rec", "item_bias": "log-frequency", "instruction": False}},
]


@pytest.mark.parametrize("changes", VARIED, ids=json.dumps)
def test_stacked_candidates_equal_separate_ones(changes: dict[str, Any]) -> None:
    study = small_settings(**changes)
    candidates = [Candidate(Layout.parse(layout), seed) for layout, seed in zip(LAYOUTS, (0, 0, 1), strict=True)]
    together = train_together(study, materials(study), candidates, study.trial, stacked=True)
    assert_as_alone(study, candidates, together)


@pytest.mark.parametrize("kind", ["darec", "idle", "ra-rec"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_candidates_in_threads_equal_separate_ones_to_the_last_bit(kind: str, count: int) -> None:
    """Whatever their number: an interrupted batch has fewer when it resumes."""
    study = small_settings(model={"kind": kind})
    candidates = [Candidate(Layout.parse(layout)) for layout in LAYOUTS[:count]]
    with using(2):
        together = train_together(study, materials(study), candidates, study.trial, at_once=3)
    for candidate, found in zip(candidates, together, strict=True):
        assert isinstance(found, Trained)
        alone = _alone(study.model_dump_json(), candidate.layout, 0, 1)
        assert [e.losses for e in found.progress.epochs] == [e.losses for e in alone.progress.epochs]
        assert [e.metrics for e in found.progress.epochs] == [e.metrics for e in alone.progress.epochs]
        own, theirs = found.model.own_tensors(), alone.model.own_tensors()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())


@pytest.mark.parametrize(("at_once", "width", "threads"), [(1, 4096, 4), (2, 4096, 2), (3, 4096, 1), (1, 16, 1)])
def test_threads_per_candidate_do_not_depend_on_the_number_left(at_once: int, width: int, threads: int) -> None:
    study = small_settings()
    ground = Ground(study, materials(study), study.trial)
    backbone = SimpleNamespace(width=width * 100_000 // 4096)
    ground.materials = SimpleNamespace(catalogue=SimpleNamespace(backbone=backbone))  # type: ignore[assignment]
    with using(4):
        assert _threads_of_one(ground, at_once) == threads


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 63), st.integers(0, 2)), min_size=2, max_size=5),
    st.sampled_from(["darec", "idle", "ra-rec"]),
    st.sampled_from([1, 2]),
)
def test_random_layouts_and_seeds_equal_separate_ones(drawn: list[tuple[int, int]], kind: str, every: int) -> None:
    study = small_settings(model={"kind": kind})
    layers = LAYERS // every
    candidates = [
        Candidate(Layout.from_bits([(bits >> k) & 1 for k in range(3 * layers)], sites=3), seed) for bits, seed in drawn
    ]
    together = train_together(
        study, materials(study), candidates, study.trial, structure=Structure(every), stacked=True
    )
    assert_as_alone(study, candidates, together, every, flips=1)


NARROW = Choice("narrow", "n", width=2)


@pytest.mark.parametrize(
    "changes", [{}, {"model": {"rec_adapter_site": "router_output", "item_key": True}}], ids=json.dumps
)
def test_stacked_choices_equal_separate_ones(changes: dict[str, Any]) -> None:
    """Of any kind and width, including no adapter at all."""
    study = small_settings(**changes)
    letters = ("NNN-NNN", "SNA-PPN", "nSn-PAS", "SPS-PPS")
    candidates = [Candidate(Layout.parse(text, (*CHOICES.values(), NARROW)), seed) for seed, text in enumerate(letters)]
    together = train_together(study, materials(study), candidates, study.trial, stacked=True)
    assert_as_alone(study, candidates, together)
    counts = [found.parameters for found in together if isinstance(found, Trained)]
    assert counts[0] < min(counts[1:])
    assert counts[3] > max(counts[:3])


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"lora_rank": 4}},
        {"model": {"lora_rank": 4, "variation": "both-causal", "item_key": True}},
        {"model": {"lora_rank": 4, "mask_mode": "post_softmax"}},
    ],
    ids=json.dumps,
)
def test_stacked_lora_equals_separate_ones(changes: dict[str, Any]) -> None:
    study = small_settings(**changes)
    thin = Choice("thin", "t", lora=True, width=2)
    letters = ("LLS-NLN", "SPS-PPS", "tNP-StA")
    candidates = [Candidate(Layout.parse(text, (*CHOICES.values(), thin)), seed) for seed, text in enumerate(letters)]
    together = train_together(
        study, materials(study), candidates, study.trial, stacked=True, structure=Structure(lora=True)
    )
    assert_as_alone(study, candidates, together, lora=True)
    first = together[0]
    assert isinstance(first, Trained)
    trained = first.model.active_tensors(first.layout)
    assert all(bool(tensor.any()) for name, tensor in trained.items() if ".lora." in name)


def test_a_layout_without_lora_trains_as_in_a_space_without_lora() -> None:
    study, layout = small_settings(model={"item_ids": "encoder"}, encoder={"name": "sasrec", "epochs": 1}), LAYOUTS[0]
    with_lora, without = (
        train(study, materials(study), Layout.parse(layout), study.trial, structure=Structure(lora=lora))
        for lora in (True, False)
    )
    assert with_lora.parameters == without.parameters
    for mine, theirs in zip(with_lora.progress.epochs, without.progress.epochs, strict=True):
        assert mine.losses == pytest.approx(theirs.losses, abs=1e-5)


def assert_as_alone(
    study: StudySettings,
    candidates: list[Candidate],
    together: list[Trained | TrainingError],
    every: int = 1,
    *,
    flips: int = 0,
    lora: bool = False,
) -> None:
    """Losses within 1e-5, relative where they are large; the ranks' metrics equal.

    Args:
        flips: users whose item may change places with one that scores the same to the last digits.
    """
    room = flips / len(materials(study).development.users)
    for candidate, found in zip(candidates, together, strict=True):
        assert isinstance(found, Trained)
        alone = _alone(study.model_dump_json(), candidate.layout, candidate.seed, every, lora)
        for mine, theirs in zip(found.progress.epochs, alone.progress.epochs, strict=True):
            assert mine.losses == pytest.approx(theirs.losses, abs=1e-5, rel=1e-5)
            assert mine.metrics["loss"] == pytest.approx(theirs.metrics["loss"], abs=1e-5)
            for name in ("MRR", "NDCG@10", "Recall@10"):
                assert mine.metrics[name] == pytest.approx(theirs.metrics[name], abs=room)
        assert found.metrics == pytest.approx(alone.metrics, abs=room)
        assert (found.layout, found.parameters) == (candidate.layout, alone.parameters)
        own, expected = found.model.own_tensors(), alone.model.own_tensors()
        assert {name: tensor.shape for name, tensor in own.items()} == {n: t.shape for n, t in expected.items()}


@lru_cache(maxsize=256)
def _alone(record: str, layout: Layout, seed: int, every: int, lora: bool = False) -> Trained:
    from dasearch.config import parse_study

    study = parse_study(json.loads(record))
    return train(study, materials(study), layout, study.trial, structure=Structure(every, lora), seed=seed)


def plainly(
    study: StudySettings,
    layout: Layout,
    parts: Callable[[Any], Iterable[torch.nn.Module]] = lambda _: (),
    rate: float = 1,
) -> tuple[list[float], RecommenderModel]:
    """Losses of a loop written here over plain parameters, and its model; ``parts`` learn at ``rate`` times the rate."""
    recipe = study.trial
    ground = Ground(study, materials(study), recipe)
    model, method = ground.model(0), ground.materials.method
    bits = model.layout_tensor(layout)
    trained = [parameter for _, parameter in model.trainable()]
    own = {id(parameter) for part in parts(model) for parameter in part.parameters()}
    groups = [{"params": [p for p in trained if (id(p) in own) == is_own]} for is_own in (False, True)]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    stack = Stack(ground, [Run.begin(ground, Candidate(layout), 0, {})])
    losses = []
    for number in range(recipe.epochs):
        totals = []
        for step, (batch, drawn) in enumerate(stack.batches()):
            stack._set_lr(number * ground.steps_per_epoch + step)
            for group, factor in zip(optimizer.param_groups, (1, rate), strict=True):
                group["lr"] = factor * stack.optimizer.param_groups[0]["lr"]
            terms = method.drawn_losses(model, batch, drawn, bits, ground.materials)
            total = sum(method.weights[name] * value for name, value in terms.items())
            optimizer.zero_grad()
            torch.as_tensor(total).sum().backward()
            torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
            optimizer.step()
            totals.append(float(torch.as_tensor(total).detach()))
        losses.append(sum(totals) / len(totals))
    return losses, model


@pytest.mark.parametrize(
    ("kind", "group", "parts"),
    [
        ("darec", "adapters", lambda model: [model.layers]),
        ("darec", "ids", lambda model: [model.item_ids]),
        ("darec", "cf", lambda model: [model.cf]),
        ("darec", "head", lambda model: [model.head]),
        ("idle", "adapters", lambda model: [model.prefixes]),
        ("ra-rec", "adapters", lambda model: [model.user_tower, model.item_tower]),
        ("e4s-rec", "ids", lambda model: [model.projection]),
    ],
)
def test_groups_have_their_own_learning_rates(kind: str, group: str, parts: Any) -> None:
    """As with parameter groups of torch's optimiser."""
    own = {"item_ids": "embedding"} if kind == "darec" else {}
    study = small_settings(model={"kind": kind, **own}, trial={"rates": {group: 4}, "epochs": 1})
    layout = Layout.all_serial(LAYERS, 2) if kind == "e4s-rec" else Layout.parse(LAYOUTS[0])
    with using(1):
        found = train(study, materials(study), layout, study.trial)
        losses, model = plainly(study, layout, parts, rate=4)
    assert [epoch.losses["total"] for epoch in found.progress.epochs] == pytest.approx(losses, rel=1e-5)
    expected = dict(model.named_parameters())
    for name, parameter in found.model.trainable():
        torch.testing.assert_close(parameter, expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [c for c in VARIED if "variation" not in c.get("model", {})], ids=json.dumps)
def test_settings_know_their_models_groups(changes: dict[str, Any]) -> None:
    study = small_settings(**changes)
    model = Ground(study, materials(study), study.trial).start(0)
    found = {model.group_of(name) for name, _ in model.trainable()}
    assert found - {None} == set(study.model.groups)


def test_a_single_candidate_is_a_plain_training() -> None:
    """Against a plain training loop: bit for bit, in float32 on one thread."""
    study = small_settings()
    recipe, layout = study.trial, Layout.parse(LAYOUTS[0])
    with using(1):
        found = train(study, materials(study), layout, recipe)
        losses, _ = plainly(study, layout)
    assert [epoch.losses["total"] for epoch in found.progress.epochs] == pytest.approx(losses, rel=1e-6)
    again = train(study, materials(study), layout, recipe)
    (stacked,) = train_together(study, materials(study), [Candidate(layout)], recipe, stacked=True)
    assert isinstance(stacked, Trained)
    assert [e.losses for e in again.progress.epochs] == [e.losses for e in stacked.progress.epochs]
    own, theirs = again.model.own_tensors(), stacked.model.own_tensors()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())


class Killed(BaseException):
    """What a process that dies in the middle leaves: files."""


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize(("after", "average"), [(1, None), (2, None), (4, None), (5, None), (5, 0.9)])
def test_each_resumes_from_its_own_last_epoch_after_a_kill(
    tmp_path: Path, stacked: bool, after: int, average: float | None
) -> None:
    study = small_settings()
    recipe = Recipe(epochs=3, batch_size=8, lr=5e-3, average=average)
    candidates = [Candidate(Layout.parse(layout), 0, tmp_path / f"{layout}.safetensors") for layout in LAYOUTS]
    plain = [Candidate(c.layout) for c in candidates]
    whole = train_together(study, materials(study), plain, recipe, stacked=stacked)
    heard: list[tuple[int, int]] = []

    def listen(place: int, epoch: Epoch) -> None:
        heard.append((place, epoch.number))
        if len(heard) == after:
            raise Killed

    with using(2):
        with pytest.raises(Killed):
            train_together(study, materials(study), candidates, recipe, on_epoch=listen, stacked=stacked)
        saved = {place: _epochs_of(candidate) for place, candidate in enumerate(candidates)}
        resumed, later = _trained_and_told(study, candidates, recipe, stacked=stacked)
    for place, epochs in saved.items():
        assert [number for k, number in later if k == place] == list(range(epochs, recipe.epochs))
    for mine, expected in zip(resumed, whole, strict=True):
        assert isinstance(mine, Trained)
        assert isinstance(expected, Trained)
        for epoch, other in zip(mine.progress.epochs, expected.progress.epochs, strict=True):
            assert epoch.losses == pytest.approx(other.losses, abs=1e-5)
        assert mine.metrics == expected.metrics


def _trained_and_told(
    study: StudySettings, candidates: list[Candidate], recipe: Recipe, *, stacked: bool
) -> tuple[list[Trained | TrainingError], list[tuple[int, int]]]:
    """What became of the candidates, and every epoch told: its candidate's place, and its number."""
    told: list[tuple[int, int]] = []

    def listen(place: int, epoch: Epoch) -> None:
        told.append((place, epoch.number))

    found = train_together(study, materials(study), candidates, recipe, stacked=stacked, on_epoch=listen)
    return found, told


def _epochs_of(candidate: Candidate) -> int:
    from dasearch.training.checkpoints import load_tensors

    assert candidate.checkpoint is not None
    if not candidate.checkpoint.is_file():
        return 0
    return len(load_tensors(candidate.checkpoint)[1]["progress"]["epochs"])


def test_candidates_at_different_epochs_catch_up(tmp_path: Path) -> None:
    """One was trained further before the kill: the others first train alone up to the same epoch."""
    study = small_settings()
    recipe = Recipe(epochs=4, batch_size=8, lr=5e-3)
    candidates = [Candidate(Layout.parse(x), 0, tmp_path / x) for x in LAYOUTS]

    def stop(epoch: Epoch) -> None:
        if epoch.number == 1:
            raise Killed

    with pytest.raises(Killed):
        train(study, materials(study), candidates[1].layout, recipe, checkpoint=candidates[1].checkpoint, on_epoch=stop)
    found, heard = _trained_and_told(study, candidates, recipe, stacked=True)
    assert heard == [(0, 0), (2, 0), (0, 1), (2, 1), *((k, n) for n in (2, 3) for k in range(3))]
    for candidate, trained in zip(candidates, found, strict=True):
        assert isinstance(trained, Trained)
        alone = train(study, materials(study), candidate.layout, recipe)
        assert trained.metrics == alone.metrics


def test_each_stops_early_by_itself() -> None:
    study = small_settings()
    recipe = Recipe(epochs=12, batch_size=8, lr=3e-2, patience=2)
    candidates = [Candidate(Layout.parse(layout), seed) for layout, seed in zip(LAYOUTS, (0, 1, 2), strict=True)]
    found = train_together(study, materials(study), candidates, recipe, stacked=True)
    lengths = []
    for candidate, trained in zip(candidates, found, strict=True):
        assert isinstance(trained, Trained)
        alone = train(study, materials(study), candidate.layout, recipe, seed=candidate.seed)
        assert len(trained.progress.epochs) == len(alone.progress.epochs)
        lengths.append(len(alone.progress.epochs))
    assert len(set(lengths)) > 1, lengths


def test_one_diverges_and_the_others_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_settings()
    original = Stack._update

    def spoilt(self: Stack, gradient: torch.Tensor) -> None:
        for k, run in enumerate(self.runs):
            if str(run.candidate.layout) == LAYOUTS[1]:
                gradient[k] = torch.nan
        original(self, gradient)

    monkeypatch.setattr(Stack, "_update", spoilt)
    candidates = [Candidate(Layout.parse(layout)) for layout in LAYOUTS]
    first, second, third = train_together(study, materials(study), candidates, study.trial, stacked=True)
    assert isinstance(second, TrainingError)
    assert str(second).startswith(f"the loss of {LAYOUTS[1]} is not a finite number")
    monkeypatch.undo()
    for found, layout in ((first, LAYOUTS[0]), (third, LAYOUTS[2])):
        assert isinstance(found, Trained)
        assert found.metrics == train(study, materials(study), Layout.parse(layout), study.trial).metrics


def test_stacked_averages_are_separate() -> None:
    study = small_settings(trial={"average": 0.9})
    candidates = [Candidate(Layout.parse(layout)) for layout in LAYOUTS]
    together = train_together(study, materials(study), candidates, study.trial, stacked=True)
    for candidate, found in zip(candidates, together, strict=True):
        assert isinstance(found, Trained)
        alone = dict(train(study, materials(study), candidate.layout, study.trial).model.trainable())
        for name, parameter in found.model.trainable():
            torch.testing.assert_close(parameter, alone[name], atol=1e-5, rtol=0)


def test_stacked_modules_equal_separate_ones() -> None:
    modules = [torch.nn.Sequential(Table(5, 4), Linear(4, 3)) for _ in range(3)]
    for k, module in enumerate(modules):
        for parameter in module.parameters():
            parameter.data.normal_(generator=seeded(k))
    flat = Flat(modules[0])
    lines = [flat.line(dict(module.named_parameters())) for module in modules]
    places = torch.randint(5, (6, 7), generator=seeded(9))
    expected = torch.cat([module(places[2 * k : 2 * k + 2]) for k, module in enumerate(modules)])
    host = torch.nn.Sequential(Table(5, 4), Linear(4, 3))
    stacked = StackedParameters(host, flat, lines)
    torch.testing.assert_close(host(places), expected)
    gradient = stacked.gradient(host(places).square().sum())
    for k, module in enumerate(modules):
        module(places[2 * k : 2 * k + 2]).square().sum().backward()
        own = flat.line({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
        torch.testing.assert_close(gradient[k], own)
    assert all(torch.equal(a, b) for a, b in zip(flat.named(lines[1]).values(), modules[1].parameters(), strict=True))


@pytest.mark.parametrize(
    "changes", [{}, {"losses": {"anchors": 2}}, {"model": {"variation": "llmrec"}}], ids=json.dumps
)
def test_padding_to_repeating_shapes_changes_no_loss(changes: dict[str, Any]) -> None:
    """The inputs of CUDA graphs: padded rows, items and anchors."""
    study = small_settings(**changes)
    ground = Ground(study, materials(study), study.trial)
    stack = Stack(
        ground, [Run.begin(ground, Candidate(Layout.parse(layout)), k, {}) for k, layout in enumerate(LAYOUTS)]
    )
    shapes = set()
    for batch, drawn in stack.batches():
        expected = stack.terms(batch, drawn)
        wide, filled = ground.materials.method.fixed(batch, drawn, ground.materials.catalogue.row_format)
        found = stack.terms(wide, filled)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
        shapes.add(tuple(part.shape for part in tensors_of(wide) + tensors_of(filled) if part.dim() == 2)[1:])
    assert wide.items.shape[1] == study.data.max_items


def test_a_candidate_without_anchors_keeps_its_place() -> None:
    """Its batch has no item with hard negatives: another seed's anchors are not used instead."""
    rows = torch.arange(2)[None]
    anchors = DARecDrawn(row=rows, position=rows, anchored=rows >= 0, negative=rows[..., None].expand(1, 2, 3))
    together = DARecDrawn.together([DARecDrawn(), anchors])
    assert together.items is None
    assert together.row is not None
    assert together.row.tolist() == [[0, 0], [0, 1]]
    assert together.anchored is not None
    assert together.anchored.tolist() == [[False, False], [True, True]]
    assert together.negative is not None
    assert together.negative.shape == (2, 2, 3)


@pytest.mark.parametrize("kind", ["darec", "idle", "ra-rec"])
@pytest.mark.parametrize("change", ["compile", "recompute"])
def test_compilation_and_recomputation_change_no_result(
    change: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers as compiled functions on tokens, and activations recomputed in the backward pass."""
    monkeypatch.setattr(darec_module, "compiled", lambda function: function)
    plain = small_settings(model={"kind": kind})
    candidates = [Candidate(Layout.parse(layout)) for layout in LAYOUTS]
    expected = train_together(plain, materials(plain), candidates, plain.trial, stacked=True)
    changed = plain.model_copy(update={change: True})
    for count in (1, 3):
        found = train_together(changed, materials(plain), candidates[:count], plain.trial, stacked=True)
        for mine, theirs in zip(found, expected[:count], strict=True):
            assert isinstance(mine, Trained)
            assert isinstance(theirs, Trained)
            for epoch, other in zip(mine.progress.epochs, theirs.progress.epochs, strict=True):
                assert epoch.losses == pytest.approx(other.losses, abs=1e-5, rel=1e-5)
            assert mine.metrics == theirs.metrics


class Launched(StepGraphs):
    """Steps of a device without graph capture."""

    def _launch(self, batch: SequenceBatch, drawn: Drawn, numbers: int, *, step: Any, light: Any) -> None:
        step(batch, drawn)


def test_a_stack_is_freed_with_its_last_reference() -> None:
    """Not by cyclic garbage collection: on a GPU its graphs hold gigabytes, and freeing them must not break a capture."""
    study = small_settings()
    ground = Ground(study, materials(study), study.trial)
    stack = Stack(ground, [Run.begin(ground, Candidate(Layout.parse(LAYOUTS[0])), 0, {})])
    stack.graphs = Launched(stack.materials.device)
    stack.take([next(stack.batches())])
    known = weakref.ref(stack)
    gc.collect()
    gc.disable()
    try:
        del stack
        assert known() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("graphs", [True, False])
def test_stacked_candidates_on_a_gpu(graphs: bool) -> None:
    """Replayed or launched one by one, compiled or not, losses are the same."""
    study = small_settings(device="cuda", graphs=graphs, compile=False, trial={"epochs": 4})
    candidates = [Candidate(Layout.parse(layout)) for layout in LAYOUTS]
    found = train_together(study, materials(study), candidates, study.trial)
    plain = small_settings(trial={"epochs": 4})
    expected = train_together(plain, materials(plain), candidates, plain.trial)
    for mine, theirs in zip(found, expected, strict=True):
        assert isinstance(mine, Trained)
        assert isinstance(theirs, Trained)
        last, other = mine.progress.epochs[-1], theirs.progress.epochs[-1]
        assert last.losses["total"] == pytest.approx(other.losses["total"], rel=0.05)

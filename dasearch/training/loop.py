"""Training one recommender under one layout.

AdamW, linear warm-up then cosine, clipping; validation after each epoch; a checkpoint after each epoch from which a
killed training goes on to the same result. Liu et al. 2024, sec. 2.4 and 3.1.4.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dasearch.config import LossSettings, Precision, Recipe, StudySettings
from dasearch.data import ContrastiveSample, SequenceBatch, n_training_batches, sample_contrastive, training_batches
from dasearch.errors import TrainingError
from dasearch.layout import Layout
from dasearch.models.darec import DARec, Variation
from dasearch.training.checkpoints import load_tensors, restore_training, save_tensors, training_state
from dasearch.training.evaluation import validation_held
from dasearch.training.losses import bpr_loss, contrastive_loss, item_cross_entropy
from dasearch.training.materials import Materials, build_model
from dasearch.training.metrics import TOP_K, Metrics, summarise
from dasearch.training.seeds import generator_for

SELECTION = f"NDCG@{TOP_K}"  # the validation metric of early stopping and of the epoch kept; the paper names none
LOSS = "loss"  # mean cross-entropy of the validation items, beside the ranking metrics


@dataclass(frozen=True)
class Epoch:
    """One epoch's means of every loss term, its validation metrics, and its seconds."""

    number: int
    losses: dict[str, float]
    metrics: dict[str, float]
    seconds: float


@dataclass
class Progress:
    """What a training has seen so far; all of it is in the checkpoint."""

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best(self) -> Epoch:
        return self.epochs[self.best_epoch]

    def add(self, epoch: Epoch) -> bool:
        """Append an epoch; True if it is the best so far."""
        self.epochs.append(epoch)
        better = len(self.epochs) == 1 or epoch.metrics[SELECTION] > self.best.metrics[SELECTION]
        if better:
            self.best_epoch = len(self.epochs) - 1
        return better

    def stale(self, patience: int | None) -> bool:
        return patience is not None and len(self.epochs) - 1 - self.best_epoch >= patience

    def record(self) -> dict[str, Any]:
        return {"epochs": [asdict(epoch) for epoch in self.epochs], "best_epoch": self.best_epoch}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Progress:
        return cls([Epoch(**epoch) for epoch in record["epochs"]], record["best_epoch"])


@dataclass(frozen=True)
class Trained:
    """A finished training: the model holds the weights of its best epoch."""

    model: DARec
    layout: Layout
    progress: Progress
    parameters: int
    seconds: float
    peak_memory: int  # bytes: of the GPU, or of the whole process on CPU

    @property
    def metrics(self) -> Metrics:
        """Validation metrics of the best epoch."""
        return Metrics.from_record(self.progress.best.metrics)


def train(
    settings: StudySettings,
    materials: Materials,
    layout: Layout,
    recipe: Recipe,
    *,
    replace_every: int = 1,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Trained:
    """Train ``layout`` by ``recipe`` on ``materials.development``.

    Args:
        seed: picks initial weights and data order; the same for every layout of a comparison.
        checkpoint: file to write after each epoch and to go on from; it is removed by whoever keeps the result.
        on_epoch: told each new epoch.

    Raises:
        TrainingError: if a loss is not a finite number.
    """
    started = time.perf_counter()
    if materials.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(materials.device)
    run = _Run(settings, materials, layout, recipe, replace_every, seed)
    progress = run.resume(checkpoint) if checkpoint is not None else Progress()
    while len(progress.epochs) < recipe.epochs and not progress.stale(recipe.patience):
        epoch = run.epoch(len(progress.epochs))
        if progress.add(epoch):
            run.keep()
        if checkpoint is not None:
            run.save(checkpoint, progress)
        on_epoch(epoch)
    run.restore_best()
    count = sum(parameter.numel() for parameter in run.trainable.values())
    seconds = sum(epoch.seconds for epoch in progress.epochs) if checkpoint else time.perf_counter() - started
    return Trained(run.model, layout, progress, count, seconds, peak_memory(materials.device))


class _Run:
    """The moving parts of one training."""

    def __init__(
        self,
        settings: StudySettings,
        materials: Materials,
        layout: Layout,
        recipe: Recipe,
        replace_every: int,
        seed: int,
    ) -> None:
        self.settings, self.materials, self.recipe = settings, materials, recipe
        self.layout = layout
        self.model = build_model(settings, materials, replace_every=replace_every, seed=seed)
        self.bits = self.model.layout_tensor(layout)
        self.trainable = dict(self.model.trainable())
        self.optimizer = torch.optim.AdamW(
            self.trainable.values(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        self.generator = generator_for(settings.seed, "order", seed)
        batches = n_training_batches(materials.development, recipe.batch_size)
        self.steps_per_epoch = math.ceil(batches / recipe.accumulate)
        self.identity = {"layout": str(layout), "seed": seed, "recipe": recipe.model_dump(mode="json")}
        self.best: dict[str, Tensor] = {}

    def epoch(self, number: int) -> Epoch:
        started = time.perf_counter()
        losses = self._optimise(number)
        self.model.eval()
        with self._autocast():
            held = validation_held(self.model, self.materials.catalogue, self.materials.development, self.bits)
        metrics = {**summarise(held.ranks).record(), LOSS: float(held.losses.mean())}
        return Epoch(number, losses, metrics, time.perf_counter() - started)

    def _optimise(self, number: int) -> dict[str, float]:
        """One pass over the training rows; the mean of each loss term."""
        self.model.train()
        sums: dict[str, float] = {}
        step, batches = number * self.steps_per_epoch, 0
        for group in _groups(self._batches(), self.recipe.accumulate):
            self._set_lr(step)
            self.optimizer.zero_grad(set_to_none=True)
            for batch in group:
                terms = self._terms(batch)
                total = weighted_total(terms, self.settings.losses)
                (total / len(group)).backward()
                for name, value in {**terms, "total": total}.items():
                    sums[name] = sums.get(name, 0.0) + value.item()
                batches += 1
            if not math.isfinite(sums["total"]):
                raise TrainingError(
                    f"the loss of {self.layout} is not a finite number; lower the learning rate of its recipe"
                )
            torch.nn.utils.clip_grad_norm_(self.trainable.values(), self.recipe.clip)
            self.optimizer.step()
            step += 1
        return {name: value / max(batches, 1) for name, value in sums.items()}

    def _batches(self) -> Iterator[SequenceBatch]:
        catalogue = self.materials.catalogue
        return training_batches(
            self.materials.development,
            catalogue.sentences,
            catalogue.row_format,
            batch_size=self.recipe.batch_size,
            generator=self.generator,
        )

    def _terms(self, batch: SequenceBatch) -> dict[str, Tensor]:
        with self._autocast():
            return loss_terms(self.model, batch, self.bits, self.materials, self.settings, self.generator)

    def _autocast(self) -> torch.autocast:
        wanted = self.recipe.precision
        on = wanted is Precision.BFLOAT16 or (wanted is Precision.AUTO and self.materials.device.type == "cuda")
        return torch.autocast(self.materials.device.type, dtype=torch.bfloat16, enabled=on)

    def _set_lr(self, step: int) -> None:
        total = self.steps_per_epoch * self.recipe.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * schedule(step, total, self.recipe.warmup)

    def keep(self) -> None:
        self.best = {name: parameter.detach().clone() for name, parameter in self.trainable.items()}

    @torch.no_grad()
    def restore_best(self) -> None:
        for name, parameter in self.trainable.items():
            parameter.copy_(self.best[name])
        self.model.eval()

    def save(self, path: Path, progress: Progress) -> None:
        tensors = training_state(self.trainable, self.optimizer, self.generator)
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        save_tensors(path, tensors, {**self.identity, "progress": progress.record()})

    def resume(self, path: Path) -> Progress:
        """Go on from a checkpoint of this very training; another's, or none, starts anew."""
        if not path.is_file():
            return Progress()
        tensors, record = load_tensors(path)
        progress = Progress.from_record(record.pop("progress"))
        if record != self.identity:
            return Progress()
        restore_training(
            {k: v for k, v in tensors.items() if not k.startswith("best/")},
            self.trainable,
            self.optimizer,
            self.generator,
        )
        device = self.materials.device
        self.best = {k.removeprefix("best/"): v.to(device) for k, v in tensors.items() if k.startswith("best/")}
        return progress


def loss_terms(
    model: DARec,
    batch: SequenceBatch,
    bits: Tensor,
    materials: Materials,
    settings: StudySettings,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The terms of L whose weight is not zero, by name: sequence, align, contrastive, collaborative (sec. 2.4)."""
    losses = settings.losses
    moved = batch.to(bits.device)
    hidden = model.sequence_hidden(moved.rows, moved.users, moved.ends, bits)
    terms = {"sequence": item_cross_entropy(model.logits(hidden), moved.targets, losses.reduction)}
    if settings.model.variation is Variation.LLMREC:
        return terms
    sample = _contrastive_sample(batch, materials, losses, generator)
    items = _alignment_items(batch, sample, losses, generator)
    if len(items):
        aligned = _align(model, materials, items, bits)
        if losses.align:
            terms["align"] = item_cross_entropy(model.logits(aligned), items.to(bits.device), losses.reduction)
        if sample is not None:
            terms["contrastive"] = _contrastive(hidden, aligned, items, sample, losses)
    if model.cf is not None and losses.collaborative and any(p.requires_grad for p in model.cf.parameters()):
        terms["collaborative"] = _collaborative(model, batch, materials, losses, generator)
    return terms


def weighted_total(terms: dict[str, Tensor], losses: LossSettings) -> Tensor:
    """``L_seq + lambda_1 L_align + lambda_2 L_cl + lambda_3 L_cf`` over the terms there are (sec. 2.4)."""
    weights = {
        "sequence": 1.0,
        "align": losses.align,
        "contrastive": losses.contrastive,
        "collaborative": losses.collaborative,
    }
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def _contrastive_sample(
    batch: SequenceBatch, materials: Materials, losses: LossSettings, generator: torch.Generator
) -> ContrastiveSample | None:
    if not losses.contrastive:
        return None
    return sample_contrastive(
        batch,
        materials.negatives,
        anchors_per_row=losses.anchors,
        negatives_per_anchor=losses.negatives,
        generator=generator,
    )


def _alignment_items(
    batch: SequenceBatch, sample: ContrastiveSample | None, losses: LossSettings, generator: torch.Generator
) -> Tensor:
    """The distinct items whose alignment rows are run: the batch's own (at most ``align_items``) and the contrastive ones."""
    parts = [torch.empty(0, dtype=torch.long)]
    if losses.align:
        own = batch.items[batch.items >= 0].unique()
        if losses.align_items is not None:
            own = own[torch.randperm(len(own), generator=generator)[: losses.align_items]]
        parts.append(own)
    if sample is not None:
        parts += [sample.positive, sample.negatives.flatten()]
    items: Tensor = torch.cat(parts).unique()
    return items


def _align(model: DARec, materials: Materials, items: Tensor, bits: Tensor) -> Tensor:
    alignment = materials.catalogue.alignment
    rows, ends = alignment.select(items).to(bits.device), alignment.ends(items).to(bits.device)
    return model.alignment_hidden(rows, items.to(bits.device), ends, bits)


def _contrastive(
    hidden: Tensor, aligned: Tensor, items: Tensor, sample: ContrastiveSample, losses: LossSettings
) -> Tensor:
    """L_cl; ``aligned`` holds a row for each of the sorted ``items``."""
    anchor = (sample.row * hidden.shape[1] + sample.position).to(hidden.device)
    positive = torch.searchsorted(items, sample.positive).to(hidden.device)
    negative = torch.searchsorted(items, sample.negatives).to(hidden.device)
    embedding = torch.nn.functional.embedding  # its backward adds in a fixed order, where indexing's need not
    return contrastive_loss(
        embedding(anchor, hidden.flatten(0, 1)),
        embedding(positive, aligned),
        embedding(negative, aligned),
        temperature=losses.temperature,
        reduction=losses.reduction,
    )


def _collaborative(
    model: DARec, batch: SequenceBatch, materials: Materials, losses: LossSettings, generator: torch.Generator
) -> Tensor:
    """L_cf on the batch's own purchases, each against an item the user did not buy."""
    assert model.cf is not None
    real = batch.targets >= 0
    users = batch.users[:, None].expand_as(batch.targets)[real]
    negatives = materials.purchases.sample_negatives(users, generator)
    device = model.head.weight.device
    users, bought, negatives = users.to(device), batch.targets[real].to(device), negatives.to(device)
    return bpr_loss(model.cf.scores(users, bought), model.cf.scores(users, negatives), losses.reduction)


def schedule(step: int, total: int, warmup: float) -> float:
    """Share of the peak rate: linear to the peak over the first ``warmup`` of the steps, cosine to zero after (sec. 3.1.4)."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak since the training began, or the process's own peak on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _groups(batches: Iterator[SequenceBatch], size: int) -> Iterator[list[SequenceBatch]]:
    group: list[SequenceBatch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group

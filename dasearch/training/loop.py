"""Training one recommender under one layout.

AdamW, linear warm-up then cosine, clipping; validation after each epoch; a checkpoint after each epoch from which a
killed training goes on to the same result. Liu et al. 2024, sec. 2.4 and 3.1.4.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dasearch.config import Precision, Recipe, StudySettings
from dasearch.data import SequenceBatch
from dasearch.errors import TrainingError
from dasearch.layout import Layout
from dasearch.models.base import RecommenderModel
from dasearch.training.checkpoints import load_tensors, restore_training, save_tensors, training_state
from dasearch.training.evaluation import validation_held
from dasearch.training.materials import Materials
from dasearch.training.method import weighted_total
from dasearch.training.metrics import TOP_K, Metrics, summarise
from dasearch.training.preparation import build_model
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

    model: RecommenderModel
    layout: Layout
    progress: Progress
    parameters: int
    seconds: float
    peak_memory: int  # bytes: of the GPU, or of the whole process on CPU

    @property
    def metrics(self) -> Metrics:
        """Validation metrics of the best epoch."""
        return Metrics.from_record(self.progress.best.metrics)


@dataclass(frozen=True)
class Candidate:
    """A layout to train from one seed.

    Attributes:
        seed: picks initial weights and data order; the same for every layout of a comparison.
        checkpoint: file to write after each epoch and to go on from; it is removed by whoever keeps the result.
    """

    layout: Layout
    seed: int = 0
    checkpoint: Path | None = None


def train_together(
    settings: StudySettings,
    materials: Materials,
    candidates: Sequence[Candidate],
    recipe: Recipe,
    *,
    replace_every: int = 1,
    on_epoch: Callable[[int, Epoch], None] = lambda place, epoch: None,
) -> list[Trained | TrainingError]:
    """Train candidates side by side; what became of each, in their order: its training, or why it diverged.

    Args:
        on_epoch: told each new epoch, with the candidate's place among ``candidates``.
    """
    found: list[Trained | TrainingError] = []
    for place, candidate in enumerate(candidates):
        try:
            found.append(
                train(
                    settings,
                    materials,
                    candidate.layout,
                    recipe,
                    replace_every=replace_every,
                    seed=candidate.seed,
                    checkpoint=candidate.checkpoint,
                    on_epoch=lambda epoch, place=place: on_epoch(place, epoch),
                )
            )
        except TrainingError as error:
            found.append(error)
    return found


def candidates_at_once(settings: StudySettings, materials: Materials, recipe: Recipe) -> int:
    """How many candidates train side by side on this device where ``search.batch`` is ``auto``."""
    return 4


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
            self.trainable.values() or [torch.zeros(())], lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        self.generator = generator_for(settings.seed, "order", seed)
        batches = materials.method.n_batches(materials.development, recipe.batch_size)
        self.steps_per_epoch = math.ceil(batches / recipe.accumulate)
        self.identity = {
            "layout": str(layout),
            "seed": seed,
            "recipe": recipe.model_dump(mode="json"),
            "study": objective_hash(settings),
        }
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
        if not self.trainable:  # the frozen model alone
            return {}
        self.model.train()
        sums: dict[str, float] = {}
        step, batches = number * self.steps_per_epoch, 0
        for group in _groups(self._batches(), self.recipe.accumulate):
            self._set_lr(step)
            self.optimizer.zero_grad(set_to_none=True)
            for batch in group:
                terms = self._terms(batch)
                total = weighted_total(terms, self.materials.method.weights)
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
        return self.materials.method.batches(self.materials, self.recipe.batch_size, self.generator)

    def _terms(self, batch: SequenceBatch) -> dict[str, Tensor]:
        with self._autocast():
            return self.materials.method.terms(self.model, batch, self.bits, self.materials, self.generator)

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


def objective_hash(settings: StudySettings) -> str:
    """What of a study decides a training's result, beside its recipe: 16 hexadecimal digits."""
    free = {"name", "device", "threads", "output", "search", "trial", "final", "comparison"}
    content = json.dumps(settings.model_dump(mode="json", exclude=free), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


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

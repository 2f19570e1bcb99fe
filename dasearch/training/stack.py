"""K concurrent trainings over one frozen model: their steps, validation and checkpoints.

The rows of all candidates share each pass through the frozen layers, with stacked trained parameters
(`dasearch.models.stacking`). The loss is summed over candidates, so that each one's gradient is its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dasearch.config import Recipe, StudySettings
from dasearch.data import SequenceBatch
from dasearch.errors import TrainingError
from dasearch.layout import PLAIN, Layout, Structure
from dasearch.models.base import ParameterGroup, RecommenderModel
from dasearch.models.stacking import Flat, StackedParameters
from dasearch.training.checkpoints import load_tensors, save_tensors
from dasearch.training.evaluation import held_out, validation_plan
from dasearch.training.graphs import StepGraphs
from dasearch.training.materials import StudyContext
from dasearch.training.method import Drawn, weighted_total
from dasearch.training.metrics import summarise
from dasearch.training.preparation import build_model
from dasearch.training.progress import LOSS, Epoch, Progress
from dasearch.training.ranks import ALONE, Peers
from dasearch.training.seeds import generator_for

T = TypeVar("T")
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
CUDA_ATTENTION = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]  # cuDNN would compile a plan for every shape


@dataclass(frozen=True)
class Candidate:
    """A layout to train from one seed.

    Attributes:
        layout: the layout.
        seed: seed of initial weights and data order; the same for every layout of a comparison.
        checkpoint: file that is written after each epoch and resumed from; the caller removes it once it has the result.
    """

    layout: Layout
    seed: int = 0
    checkpoint: Path | None = None


class Stopped(Exception):
    """Training was cancelled between two steps; its last epoch is in the checkpoint."""


class Ground:
    """Shared state of all trainings of one recipe: the training rows, and initial models.

    Attributes:
        flat: conversion of the trained parameters to a flat vector.
        factors: learning-rate factor of each parameter number, ``(n,)``; None if all have the same rate.
        share: share of an epoch's seconds attributed to a stack; below 1 if several stacks train concurrently.
        stopped: event that cancels the trainings at their next step.
        peers: the processes that share the trainings.
    """

    def __init__(
        self,
        settings: StudySettings,
        materials: StudyContext,
        recipe: Recipe,
        structure: Structure = PLAIN,
        peers: Peers = ALONE,
    ) -> None:
        self.peers, self.structure = peers, structure
        self.settings, self.recipe = settings.by(recipe), recipe
        self.materials = materials.under(self.settings).computing_in(recipe.precision)
        self.plan = self.materials.method.plan(self.materials, recipe.batch_size)
        self.validation = validation_plan(self.materials.catalogue, self.materials.development)
        self.share, self.stopped = 1.0, threading.Event()
        self._starts: dict[int, RecommenderModel] = {}
        self.flat = Flat(self.start(0))
        self.factors = self._factors() if recipe.rates else None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return math.ceil(self.plan.n_batches(self.recipe.batch_size) / self.recipe.accumulate)

    def _factors(self) -> Tensor:
        model, rates = self.start(0), self.recipe.rates

        def factor(group: ParameterGroup | None) -> float:
            return 1.0 if group is None else rates.get(group, 1.0)

        return self.flat.line({n: torch.full_like(p, factor(model.group_of(n))) for n, p in model.trainable()})

    def model(self, seed: int) -> RecommenderModel:
        """A new model with initial weights from this seed."""
        model = build_model(self.settings, self.materials, self.structure, seed=seed)
        self.peers.follow(model.own_tensors().values())
        model.recompute = self.settings.recompute
        on_gpu = self.materials.device.type == "cuda"
        wanted = on_gpu if self.settings.compile is None else self.settings.compile
        if wanted and not self.materials.catalogue.backbone.sharded:
            model.compile_layers()
        return model

    def start(self, seed: int) -> RecommenderModel:
        """The initial model of this seed, cached and not to be trained."""
        if seed not in self._starts:
            self._starts[seed] = self.model(seed)
        return self._starts[seed]

    def kind(self, seed: int) -> int:
        """A number shared by seeds whose trainings can be stacked, as their models' untrained tensors are equal."""
        for other in () if self.materials.method.reads_padding else self._starts:
            if all(torch.equal(*pair) for pair in zip(self._untrained(seed), self._untrained(other), strict=True)):
                return other
        return seed

    def _untrained(self, seed: int) -> Iterator[Tensor]:
        return (t for name, t in self.start(seed).own_tensors().items() if name not in self.flat.shapes)


@dataclass
class Run:
    """One candidate's training: the state that its checkpoint stores.

    Shapes: line (trained parameters), each of the moments, average, and best (parameters of the best epoch) ``(n,)``.

    Attributes:
        place: index of the candidate within one call.
        kind: runs of the same kind can be stacked.
        steps: optimiser steps so far.
        order: state of the data-order generator.
        average: moving average of the line over steps; None if the recipe uses none.
    """

    candidate: Candidate
    place: int
    identity: dict[str, Any]
    kind: int
    line: Tensor
    moments: tuple[Tensor, ...]
    best: Tensor
    order: Tensor
    steps: int = 0
    progress: Progress = field(default_factory=Progress)
    error: TrainingError | None = None
    average: Tensor | None = None

    @classmethod
    def begin(cls, ground: Ground, candidate: Candidate, place: int, identity: dict[str, Any]) -> Run:
        """A new run, or one resumed from its checkpoint; the checkpoint of another training is ignored."""
        line = ground.flat.line(dict(ground.start(candidate.seed).named_parameters()))
        order = generator_for(ground.settings.seed, "order", candidate.seed).get_state()
        moments = tuple(torch.zeros_like(line) for _ in MOMENTS)
        run = cls(candidate, place, identity, ground.kind(candidate.seed), line, moments, line, order)
        run.average = None if ground.recipe.average is None else line
        if candidate.checkpoint is not None and candidate.checkpoint.is_file():
            run._resume(ground.flat, candidate.checkpoint)
        return run

    @property
    def validated(self) -> Tensor:
        """The parameters that an epoch's metrics evaluate, ``(n,)``."""
        return self.line if self.average is None else self.average

    def over(self, recipe: Recipe) -> bool:
        """Whether it diverged, has all its epochs, or was stopped early."""
        done = len(self.progress.epochs) >= recipe.epochs or self.progress.stale(recipe.patience)
        return self.error is not None or done

    def add(self, epoch: Epoch, flat: Flat, *, peers: Peers = ALONE) -> None:
        """Record an epoch and save the checkpoint in the first process; or record that the training diverged."""
        if not all(math.isfinite(value) for value in epoch.losses.values()):
            layout = self.candidate.layout
            self.error = TrainingError(
                f"the loss of {layout} is not a finite number; lower the learning rate of its recipe"
            )
            return
        if self.progress.add(epoch):
            self.best = self.validated.clone()
        if self.candidate.checkpoint is not None and peers.first:
            self._save(flat, self.candidate.checkpoint)

    def _save(self, flat: Flat, path: Path) -> None:
        tensors = {f"parameter/{name}": part for name, part in flat.named(self.line).items()}
        for moment, line in zip(MOMENTS, self.moments, strict=True):
            tensors |= {f"optimizer/{moment}/{name}": part for name, part in flat.named(line).items()}
        tensors |= {f"optimizer/step/{name}": torch.tensor(float(self.steps)) for name in flat.shapes}
        tensors |= {f"best/{name}": part for name, part in flat.named(self.best).items()}
        if self.average is not None:
            tensors |= {f"average/{name}": part for name, part in flat.named(self.average).items()}
        save_tensors(path, {**tensors, "generator": self.order}, {**self.identity, "progress": self.progress.record()})

    def _resume(self, flat: Flat, path: Path) -> None:
        tensors, record = load_tensors(path)
        progress = Progress.from_record(record.pop("progress"))
        if record != self.identity:
            return

        def read(kind: str) -> Tensor:
            named = {name: tensors[f"{kind}/{name}"] for name in flat.shapes}
            return flat.line(named).to(self.line)

        self.line, self.best, self.order = read("parameter"), read("best"), tensors["generator"]
        steps = [int(tensors[f"optimizer/step/{name}"]) for name in flat.shapes]
        self.steps = max(steps, default=0)
        if self.steps:
            self.moments = tuple(read(f"optimizer/{moment}") for moment in MOMENTS)
        self.average = None if self.average is None else read("average")
        self.progress = progress


class Stack:
    """The stacked training state of K runs at the same epoch."""

    def __init__(self, ground: Ground, runs: Sequence[Run]) -> None:
        self.ground, self.runs, self.recipe = ground, runs, ground.recipe
        self.materials, self.peers = ground.materials, ground.peers
        self.model = ground.model(runs[0].candidate.seed)
        self.parameters = StackedParameters(self.model, ground.flat, [run.line for run in runs])
        layouts = [run.candidate.layout for run in runs]
        tensors = self.model.layout_tensors(layouts)
        self.layout = tensors[0] if len(runs) == 1 else tensors
        self.generators = {run.candidate.seed: torch.Generator() for run in runs}
        for run in runs:
            self.generators[run.candidate.seed].set_state(run.order)
        self.optimizer = self._optimizer(runs)
        averages = [run.average for run in runs if run.average is not None]
        self.average = torch.stack(averages) if averages else None  # (K, n)
        self.sums: dict[str, Tensor] = {}  # sum of every term over the epoch so far, (K,)
        self._own_terms: list[dict[str, Tensor]] = []  # terms of this process's batches, if several share an epoch
        self._kept_sums: dict[
            str, Tensor
        ] = {}  # sums of the previous epoch, reused because graphs add to the same tensors
        self.graphs = StepGraphs(self.materials.device) if self._repeats() else None

    def _repeats(self) -> bool:
        """Whether steps are replayed as CUDA graphs."""
        wanted = self.ground.settings.graphs is not False and self.materials.device.type == "cuda"
        return wanted and self.recipe.accumulate == 1 and self.materials.method.has_fixed_shapes

    def _optimizer(self, runs: Sequence[Run]) -> torch.optim.AdamW:
        matrix, recipe = self.parameters.matrix, self.recipe
        on_gpu = matrix.is_cuda
        rate = (
            torch.tensor(recipe.lr, device=matrix.device) if on_gpu else recipe.lr
        )  # graphs read the tensor's current value
        optimizer = torch.optim.AdamW(
            [matrix], lr=rate, weight_decay=recipe.weight_decay, fused=True, capturable=on_gpu
        )
        if runs[0].steps:
            step = torch.tensor(float(runs[0].steps), device=matrix.device)
            moments = (torch.stack(lines) for lines in zip(*(run.moments for run in runs), strict=True))
            optimizer.state[matrix] = {"step": step, **dict(zip(MOMENTS, moments, strict=True))}
        return optimizer

    def epoch(self, number: int) -> list[Epoch]:
        """Train on every row once, then validate; returns an `Epoch` per run, after storing its state in the run."""
        started = time.perf_counter()
        with _attention(self.materials.device):
            losses = self._optimise(number)
            with self._averaged():
                validation, catalogue = self.ground.validation, self.materials.catalogue
                held = held_out(self.model, catalogue, validation, self.layout, peers=self.peers)
        self._unstack(number + 1)
        seconds = (time.perf_counter() - started) * self.ground.share / len(self.runs)
        return [
            Epoch(number, own, {**summarise(h.ranks).record(), LOSS: float(h.losses.mean())}, seconds)
            for own, h in zip(losses, held, strict=True)
        ]

    def _unstack(self, epochs: int) -> None:
        """Store every run's state in the run, as copies of the stacked tensors, which the next epoch changes."""
        moments = self.optimizer.state.get(self.parameters.matrix, {})
        for k, run in enumerate(self.runs):
            run.line = self.parameters.matrix[k]
            run.moments = tuple(moments[name][k] for name in MOMENTS) if moments else run.moments
            run.average = None if self.average is None else self.average[k]
            run.order = self.generators[run.candidate.seed].get_state()
            run.steps = epochs * self.ground.steps_per_epoch if moments else 0

    def _optimise(self, number: int) -> list[dict[str, float]]:
        """One pass over the training rows; returns each run's mean of every loss term, copied from the device at the end."""
        if not len(self.ground.flat):  # only the frozen model
            return [{} for _ in self.runs]
        self.model.train()
        self.sums.clear()
        if self.graphs is not None:
            for values in self._kept_sums.values():
                values.zero_()
            self.sums.update(self._kept_sums)
        first = number * self.ground.steps_per_epoch
        for step, group in enumerate(_groups(self.batches(), self.recipe.accumulate), start=first):
            self._set_lr(step)
            self.take(group)
            self._take_average(step + 1)
            if self.ground.stopped.is_set():
                raise Stopped
        self._kept_sums = dict(self.sums)
        batches = self.ground.plan.n_batches(self.recipe.batch_size)
        if self.peers.size > 1:
            self._add_all_terms(batches)
        read = {name: (value / batches).tolist() for name, value in self.sums.items()}
        return [{name: values[k] for name, values in read.items()} for k in range(len(self.runs))]

    def take(self, group: list[tuple[SequenceBatch, Drawn]]) -> None:
        """One optimiser step from batches on the CPU, as a graph replay if enabled."""
        (self._run if self.graphs is None else self._run_graph)(group)

    def _run(self, group: list[tuple[SequenceBatch, Drawn]]) -> None:
        """One optimiser step from the gradients of this process's and its peers' batches."""
        own = self._own_gradients(group, 1 / len(group))
        self._update(self.peers.total(own, len(group), like=self.parameters.matrix))

    def _own_gradients(self, group: list[tuple[SequenceBatch, Drawn]], share: float) -> Iterator[Tensor]:
        """The gradient of each of this process's batches."""
        device, backbone = self.materials.device, self.materials.catalogue.backbone
        for (batch, drawn), own in self.peers.computed(group, _passes, together=backbone.sharded):
            gradient = self._gradient(batch.to(device), drawn.to(device), share, own=own)
            if own:
                yield gradient

    def _run_graph(self, group: list[tuple[SequenceBatch, Drawn]]) -> None:
        """One optimiser step from a single batch, padded to repeating shapes, as a graph."""
        ((batch, drawn),) = group
        assert self.graphs is not None
        fixed = self.materials.method.fixed(batch, drawn, self.materials.catalogue.row_format)
        self.graphs.run(*fixed, step=self.step, light=self.light_step)

    def step(self, batch: SequenceBatch, drawn: Drawn) -> None:
        """One optimiser step from one batch on the device, without synchronisation."""
        self._update(self._gradient(batch, drawn))

    def light_step(self, batch: SequenceBatch, drawn: Drawn) -> None:
        """The same step with activations recomputed in the backward pass."""
        kept, self.model.recompute = self.model.recompute, True
        try:
            self.step(batch, drawn)
        finally:
            self.model.recompute = kept

    def _gradient(self, batch: SequenceBatch, drawn: Drawn, share: float = 1.0, *, own: bool = True) -> Tensor:
        """Gradient of the loss times ``share``; every term is added to the epoch's sums, or stored for them, if ``own``."""
        terms = self.terms(batch, drawn)
        values = {name: value.detach() for name, value in terms.items()}
        if self.peers.size == 1:
            self._add(values)
        elif own:
            self._own_terms.append(values)
        return self.parameters.gradient(terms["total"].sum() * share)

    def _add(self, terms: dict[str, Tensor]) -> None:
        """Add a batch's terms to the epoch's sums."""
        for name, value in terms.items():
            if name in self.sums:
                self.sums[name].add_(value)
            else:
                self.sums[name] = value.clone()

    def _add_all_terms(self, batches: int) -> None:
        """Add the terms of all processes' batches, in batch order; a batch may lack some terms."""
        names = [*self.materials.method.weights, "total"]
        nothing = self.parameters.matrix.new_zeros(len(names), 2, len(self.runs))
        own = []
        for terms in self._own_terms:
            own.append(nothing.clone())  # (names, value and presence, K)
            for place, name in enumerate(names):
                if name in terms:
                    own[-1][place, 0], own[-1][place, 1] = terms[name], 1
        parts = self.peers.in_order(own, batches, like=nothing)
        for part, there in zip(parts, torch.stack(parts)[:, :, 1, 0].tolist(), strict=True):
            self._add({name: part[place, 0] for place, name in enumerate(names) if there[place]})
        self._own_terms.clear()

    def batches(self) -> Iterator[tuple[SequenceBatch, Drawn]]:
        """An epoch's batches of all runs, on the CPU; each run's row order depends on its seed."""
        method, materials = self.materials.method, self.materials
        streams = {
            seed: self.ground.plan.shuffled(self.recipe.batch_size, generator)
            for seed, generator in self.generators.items()
        }
        for parallel in zip(*streams.values(), strict=True):
            batches = dict(zip(streams, parallel, strict=True))
            drawn = {seed: method.draw(batch, materials, self.generators[seed]) for seed, batch in batches.items()}
            seeds = [run.candidate.seed for run in self.runs]
            kind = type(drawn[seeds[0]])
            yield (
                SequenceBatch.together([batches[seed] for seed in seeds]),
                kind.together([drawn[seed] for seed in seeds]),
            )

    def terms(self, batch: SequenceBatch, drawn: Drawn) -> dict[str, Tensor]:
        """Every loss term and the total, each ``(K,)``."""
        method = self.materials.method
        terms = method.drawn_losses(self.model, batch, drawn, self.layout, self.materials)
        return {**terms, "total": weighted_total(terms, method.weights)}

    def _update(self, gradient: Tensor) -> None:
        """One optimiser step; each run's gradient ``(n,)`` is clipped by its own norm, like `clip_grad_norm_`."""
        norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        matrix, factors = self.parameters.matrix, self.ground.factors
        matrix.grad = gradient * (self.recipe.clip / (norms + 1e-6)).clamp(max=1.0)
        if factors is None:
            self.optimizer.step()
            return
        before = matrix.clone()
        self.optimizer.step()
        matrix.copy_(torch.lerp(before, matrix, factors))  # AdamW's step and its decay are proportional to the rate

    def _take_average(self, steps: int) -> None:
        """Update the moving average with the parameters after this many steps."""
        if self.average is not None:
            assert self.recipe.average is not None
            self.average.lerp_(self.parameters.matrix, newest_share(self.recipe.average, steps))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Use the moving average as the model's parameters within the block, if there is one."""
        if self.average is None:
            yield
            return
        matrix, last = self.parameters.matrix, self.parameters.matrix.clone()
        matrix.copy_(self.average)
        try:
            yield
        finally:
            matrix.copy_(last)

    def _set_lr(self, step: int) -> None:
        total = self.ground.steps_per_epoch * self.recipe.epochs
        rate = self.recipe.lr * schedule(step, total, self.recipe.warmup)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def schedule(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up over the first ``warmup`` of the steps, cosine after (sec. 3.1.4)."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def newest_share(decay: float, steps: int) -> float:
    """Weight of the newest of this many steps in the exponential moving average; 1 for the first.

    The weights of all steps sum to one, as with Adam's bias correction (Kingma and Ba 2015, sec. 3), so that the initial
    parameters do not contribute to a short average.
    """
    return (1 - decay) / (1 - decay**steps)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    return sdpa_kernel(CUDA_ATTENTION) if device.type == "cuda" else nullcontext()


def _passes(part: tuple[SequenceBatch, Drawn]) -> tuple[bool, ...]:
    """What decides how often a batch's losses call the frozen layers: which inputs were sampled."""
    _, drawn = part
    return tuple(getattr(drawn, field.name) is None for field in dataclasses.fields(drawn))


def _groups(parts: Iterator[T], size: int) -> Iterator[list[T]]:
    while group := list(itertools.islice(parts, size)):
        yield group

"""Training recommenders, one layout or several concurrently.

AdamW, linear warm-up then cosine decay, gradient clipping; validation and a checkpoint after each epoch, from which a killed
training resumes to the same result. Liu et al. 2024, sec. 2.4 and 3.1.4.
"""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from dasearch.config import Recipe, StudySettings
from dasearch.errors import TrainingError
from dasearch.layout import PLAIN, Layout, Structure
from dasearch.models.base import RecommenderModel
from dasearch.models.lora import ALPHA, RANK
from dasearch.models.stacking import StackedParameters
from dasearch.threads import fitting, most_threads, using
from dasearch.training.materials import StudyContext, compute_dtype
from dasearch.training.progress import Epoch, Fit
from dasearch.training.ranks import ALONE, Peers
from dasearch.training.seeds import generator_for
from dasearch.training.stack import Candidate, Ground, Run, Stack

MOST_AT_ONCE = 4  # of a search: regret within .01 of sequential search, while 8 add .02 (benchmarks/README.md)
MEMORY_SHARE = 0.6  # share of a GPU for a step's activations, which stay in its CUDA graphs' memory pool
ADDED_READINGS = {  # settings added later, with their former fixed values, so that earlier trainings keep their identity
    "item_ids": "none",
    "item_key": False,
    "user_key": "trained",
    "head_states": "plain",
    "dropout": 0.0,
    "encoder_scores": 0.0,
    "router_start": 0.5,
    "head_text": False,
    "lora_rank": RANK,
    "lora_alpha": ALPHA,
}
KEPT_OF_A_TOKEN = (
    34  # numbers that a layer keeps per token, in widths: SmolLM2 on an H100, 43 GiB for 8 candidates of 16 rows
)
OnEpoch = Callable[[int, Epoch], None]  # a candidate's index, and its new epoch


@dataclass(frozen=True)
class Trained(Fit):
    """A finished training of a layout, with its model at the best epoch's weights."""

    layout: Layout
    model: RecommenderModel


def train(
    settings: StudySettings,
    materials: StudyContext,
    layout: Layout,
    recipe: Recipe,
    *,
    structure: Structure = PLAIN,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Trained:
    """Train ``layout`` by ``recipe`` on ``materials.development``.

    Args:
        settings: the study's settings.
        materials: the study's prepared inputs.
        layout: the layout to train.
        recipe: optimiser, batch size and number of epochs.
        structure: as of `train_together`.
        seed: seed of initial weights and data order, as of `Candidate`.
        checkpoint: file of the checkpoint, as of `Candidate`.
        on_epoch: callback that receives each new epoch.

    Raises:
        TrainingError: if a loss is not a finite number.
    """
    candidate = Candidate(layout, seed, checkpoint)
    (outcome,) = train_together(
        settings,
        materials,
        [candidate],
        recipe,
        structure=structure,
        on_epoch=lambda _, e: on_epoch(e),
    )
    if isinstance(outcome, TrainingError):
        raise outcome
    return outcome


def train_together(
    settings: StudySettings,
    materials: StudyContext,
    candidates: Sequence[Candidate],
    recipe: Recipe,
    *,
    structure: Structure = PLAIN,
    at_once: int = 1,
    stacked: bool | None = None,
    peers: Peers = ALONE,
    on_epoch: OnEpoch = lambda place, epoch: None,
) -> list[Trained | TrainingError]:
    """Train candidates concurrently; returns the result of each in order: its training, or the error if it diverged.

    With stacking, all share each pass through the frozen model, while each is clipped, stopped early and checkpointed
    separately: the result equals that of a separate training, up to floating-point differences of other tensor shapes. Without,
    each trains in its own thread, as many at a time as there are cores, with exactly the result of a separate training.

    Args:
        settings: the study's settings.
        materials: the study's prepared inputs.
        candidates: layouts with their seeds and checkpoints.
        recipe: optimiser, batch size and number of epochs.
        structure: of the search space, so that all its models have the same parameters; LoRA is implied if a layout uses it.
        at_once: number of candidates that the caller usually trains concurrently and that share the cores; a smaller number
            at a search's end or after resuming gives the same results.
        stacked: whether to stack; by default on a GPU, which few rows do not fill, unlike a CPU core.
        peers: the processes that share each training; all make the same call, and the first writes the checkpoints.
        on_epoch: callback that receives each new epoch, with the candidate's index in ``candidates``.
    """
    if materials.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(materials.device)
    if any(candidate.layout.has_lora for candidate in candidates):
        structure = structure._replace(lora=True)
    ground = Ground(settings, materials, recipe, structure, peers)
    runs = [
        Run.begin(ground, candidate, place, _identity(settings, recipe, candidate))
        for place, candidate in enumerate(candidates)
    ]
    for run in runs:
        peers.require_same_epochs(len(run.progress.epochs), materials.device)
    with using(settings.threads):
        if materials.device.type == "cuda" if stacked is None else stacked:
            _train_stacked(ground, runs, on_epoch)
        else:
            threads = _threads_of_one(ground, at_once)
            workers = min(torch.get_num_threads() // threads, len(runs))
            with using(threads):
                _train_in_threads(ground, runs, workers, on_epoch)
    return [_result(ground, run) for run in runs]


def _threads_of_one(ground: Ground, at_once: int) -> int:
    """Number of threads per candidate: as many as its steps can use of its share of the cores.

    It depends only on the study and the machine, since sums over other numbers of threads differ in their last digits.
    """
    rows, tokens = ground.recipe.batch_size, int(ground.plan.sizes.mean())
    share = max(1, torch.get_num_threads() // at_once)
    return fitting(rows * tokens * ground.materials.catalogue.backbone.width, most=share)


def _train_in_threads(ground: Ground, runs: Sequence[Run], workers: int, on_epoch: OnEpoch) -> None:
    """Train every run separately, ``workers`` at a time; ``on_epoch`` is called in this thread.

    If this thread is interrupted, the others stop after their current step.
    """
    if workers < 2:
        for run in runs:
            _train_stacked(ground, [run], on_epoch)
        return
    messages: SimpleQueue[tuple[int, Epoch] | None] = SimpleQueue()

    def work(run: Run) -> None:
        try:
            _train_stacked(ground, [run], lambda place, epoch: messages.put((place, epoch)))
        finally:
            messages.put(None)

    ground.share = 1 / workers
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, run) for run in runs]
        try:
            left = len(runs)
            while left:
                message = messages.get()
                left -= message is None
                if message is not None:
                    on_epoch(*message)
        except BaseException:
            ground.stopped.set()
            pool.shutdown(cancel_futures=True)
            _report_rest(messages, on_epoch)
            raise
    for future in futures:
        future.result()


def _report_rest(messages: SimpleQueue[tuple[int, Epoch] | None], on_epoch: OnEpoch) -> None:
    """Report epochs that were saved but not yet reported when training was interrupted; errors of the callback are ignored."""
    while not messages.empty():
        message = messages.get()
        if message is not None:
            with suppress(BaseException):
                on_epoch(*message)


def _train_stacked(ground: Ground, runs: Sequence[Run], on_epoch: OnEpoch) -> None:
    while level := _lowest(runs, ground.recipe):
        _train_level(ground, level, runs, on_epoch)


def candidates_at_once(settings: StudySettings, materials: StudyContext, recipe: Recipe) -> int:
    """Number of candidates to train concurrently on this device if ``search.batch`` is ``auto``.

    At most the batch size that costs a search no quality, and no more than saves time: on a CPU its threads; on a GPU what fits
    its total memory, not the memory that is currently free, so that a study resumes with the same number.
    """
    if materials.device.type == "cpu":
        return min(MOST_AT_ONCE, settings.threads or most_threads())
    memory = torch.cuda.get_device_properties(materials.device).total_memory
    return max(1, min(MOST_AT_ONCE, int(MEMORY_SHARE * memory / _activation_bytes(settings, materials, recipe))))


def _activation_bytes(settings: StudySettings, materials: StudyContext, recipe: Recipe) -> int:
    """Bytes of activations that one candidate's step keeps for the backward pass, for the longest rows."""
    method, backbone = materials.method, materials.catalogue.backbone
    plan = method.plan(materials, recipe.batch_size)
    batch = plan.batch(torch.from_numpy(plan.sizes.argsort()[-recipe.batch_size :].copy()))
    drawn = method.draw(batch, materials, generator_for("memory"))
    aligned = getattr(drawn, "tokens", None)
    tokens = batch.rows.tokens.numel() + (0 if aligned is None else aligned.numel())
    layers = 1 if settings.recompute else len(backbone.blocks)
    size = compute_dtype(recipe.precision, materials.device).itemsize
    return int(tokens * layers * backbone.width * KEPT_OF_A_TOKEN * size)


def _lowest(runs: Sequence[Run], recipe: Recipe) -> list[Run]:
    """The unfinished runs with the fewest epochs, which can be stacked."""
    left = [run for run in runs if not run.over(recipe)]
    first = min(left, key=_rung, default=None)
    return [] if first is None else [run for run in left if _rung(run) == _rung(first)]


def _rung(run: Run) -> tuple[int, int]:
    """A key that is equal for runs that can be stacked."""
    return len(run.progress.epochs), run.kind


def _train_level(ground: Ground, level: list[Run], runs: Sequence[Run], on_epoch: OnEpoch) -> None:
    """Train stacked runs until one of them is finished, or they have caught up with others."""
    stack = Stack(ground, level)
    while True:
        for run, epoch in zip(level, stack.epoch(_rung(level[0])[0]), strict=True):
            run.add(epoch, ground.flat, peers=ground.peers)
            if run.error is None:  # saved epochs are reported; after an interruption here the others' epoch is repeated
                on_epoch(run.place, epoch)
        if [run.place for run in _lowest(runs, ground.recipe)] != [run.place for run in level]:
            return


def _result(ground: Ground, run: Run) -> Trained | TrainingError:
    if run.error is not None:
        return run.error
    model = ground.model(run.candidate.seed)
    StackedParameters(model, ground.flat, [run.best])
    seconds = sum(epoch.seconds for epoch in run.progress.epochs)
    peak = peak_memory(ground.materials.device)
    layout = run.candidate.layout
    return Trained(run.progress, model.count_trained(layout), seconds, peak, layout, model.eval())


def _identity(settings: StudySettings, recipe: Recipe, candidate: Candidate) -> dict[str, Any]:
    """The fields that identify a checkpoint's training."""
    own = [choice.record() for choice in candidate.layout.own_choices]
    return {
        "layout": str(candidate.layout),
        **({"choices": own} if own else {}),
        "seed": candidate.seed,
        "recipe": recipe.record(),
        "study": objective_hash(settings),
    }


def objective_hash(settings: StudySettings) -> str:
    """16 hexadecimal digits over everything in a study, besides its recipe, that determines a training's result."""
    free = {
        "name",
        "device",
        "threads",
        "compile",
        "graphs",
        "recompute",
        "shard",
        "output",
        "search",
        "trial",
        "final",
        "comparison",
    }
    content = settings.model_dump(mode="json", exclude=free)
    for name, printed in ADDED_READINGS.items():
        if content["model"].get(name) == printed:
            del content["model"][name]
    if not settings.reads_encoder:
        del content["encoder"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: the GPU's since the training began, or the whole process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""Training recommenders, one layout or several side by side.

AdamW, linear warm-up then cosine, clipping; validation after each epoch; a checkpoint after each epoch from which a
killed training goes on to the same result. Liu et al. 2024, sec. 2.4 and 3.1.4.
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
from dasearch.layout import Layout
from dasearch.models.base import RecommenderModel
from dasearch.models.lora import ALPHA, RANK
from dasearch.models.stacking import StackedParameters
from dasearch.threads import fitting, most_threads, using
from dasearch.training.materials import StudyContext, compute_dtype
from dasearch.training.progress import Epoch, Fit
from dasearch.training.ranks import ALONE, Peers
from dasearch.training.seeds import generator_for
from dasearch.training.stack import Candidate, Ground, Run, Stack

MOST_AT_ONCE = 4  # of a search: regret within .01 of one at a time, where 8 add .02 (benchmarks/README.md)
MEMORY_SHARE = 0.6  # of a GPU for a step's activations, which stay in the pool of its CUDA graphs
ADDED_READINGS = {  # of a model, and what they were before there was a choice: what was trained then keeps its identity
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
    34  # numbers a layer keeps of a token, in widths: SmolLM2 on an H100, 43 GiB for 8 candidates of 16 rows
)
OnEpoch = Callable[[int, Epoch], None]  # a candidate's place, and its new epoch


@dataclass(frozen=True)
class Trained(Fit):
    """A finished training of a layout with its model, which holds the weights of its best epoch."""

    layout: Layout
    model: RecommenderModel


def train(
    settings: StudySettings,
    materials: StudyContext,
    layout: Layout,
    recipe: Recipe,
    *,
    replace_every: int = 1,
    lora: bool = False,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Trained:
    """Train ``layout`` by ``recipe`` on ``materials.development``.

    Args:
        lora: as of `train_together`.
        seed, checkpoint: as of `Candidate`.
        on_epoch: told each new epoch.

    Raises:
        TrainingError: if a loss is not a finite number.
    """
    candidate = Candidate(layout, seed, checkpoint)
    (found,) = train_together(
        settings,
        materials,
        [candidate],
        recipe,
        replace_every=replace_every,
        lora=lora,
        on_epoch=lambda _, e: on_epoch(e),
    )
    if isinstance(found, TrainingError):
        raise found
    return found


def train_together(
    settings: StudySettings,
    materials: StudyContext,
    candidates: Sequence[Candidate],
    recipe: Recipe,
    *,
    replace_every: int = 1,
    lora: bool = False,
    at_once: int = 1,
    stacked: bool | None = None,
    peers: Peers = ALONE,
    on_epoch: OnEpoch = lambda place, epoch: None,
) -> list[Trained | TrainingError]:
    """Train candidates side by side; what became of each, in their order: its training, or why it diverged.

    Stacked, all go through the frozen model together, and each is clipped, stopped early and kept by itself: it comes out
    as it would alone, but for the last digits of sums over other shapes. Else each trains in a thread of its own, as many
    at a time as there are cores, and comes out as it would alone to the last digit.

    Args:
        lora: whether the search space has LoRA, so that all its models have the same parameters; where a layout chooses it,
            they have them anyway.
        at_once: how many candidates the caller trains side by side as a rule, who share the cores; fewer are left over
            at a search's end or when one is resumed, and come out the same.
        stacked: None: on a GPU, which few rows leave idle; a core they keep busy.
        peers: the processes that share each training; all call this alike, and the first writes the checkpoints.
        on_epoch: told each new epoch, with the candidate's place among ``candidates``.
    """
    if materials.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(materials.device)
    lora = lora or any(candidate.layout.has_lora for candidate in candidates)
    ground = Ground(settings, materials, recipe, replace_every, lora, peers)
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
    """Threads that one candidate computes with: as many as its steps are worth of its share of the cores.

    A function of the study and the machine alone, since sums by other numbers of threads differ in their last digits.
    """
    rows, tokens = ground.recipe.batch_size, int(ground.plan.sizes.mean())
    share = max(1, torch.get_num_threads() // at_once)
    return fitting(rows * tokens * ground.materials.catalogue.backbone.width, most=share)


def _train_in_threads(ground: Ground, runs: Sequence[Run], workers: int, on_epoch: OnEpoch) -> None:
    """Every run by itself, so many at a time; epochs are told in this thread.

    Where this thread is interrupted, the others end with the step that they are at.
    """
    if workers < 2:
        for run in runs:
            _train_stacked(ground, [run], on_epoch)
        return
    told: SimpleQueue[tuple[int, Epoch] | None] = SimpleQueue()

    def work(run: Run) -> None:
        try:
            _train_stacked(ground, [run], lambda place, epoch: told.put((place, epoch)))
        finally:
            told.put(None)

    ground.share = 1 / workers
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, run) for run in runs]
        try:
            left = len(runs)
            while left:
                news = told.get()
                left -= news is None
                if news is not None:
                    on_epoch(*news)
        except BaseException:
            ground.stopped.set()
            pool.shutdown(cancel_futures=True)
            _tell_rest(told, on_epoch)
            raise
    for future in futures:
        future.result()


def _tell_rest(told: SimpleQueue[tuple[int, Epoch] | None], on_epoch: OnEpoch) -> None:
    """Epochs that were saved but not told when the training was broken off; the listener has said what it has to say."""
    while not told.empty():
        news = told.get()
        if news is not None:
            with suppress(BaseException):
                on_epoch(*news)


def _train_stacked(ground: Ground, runs: Sequence[Run], on_epoch: OnEpoch) -> None:
    while level := _lowest(runs, ground.recipe):
        _train_level(ground, level, runs, on_epoch)


def candidates_at_once(settings: StudySettings, materials: StudyContext, recipe: Recipe) -> int:
    """How many candidates train side by side on this device where ``search.batch`` is ``auto``.

    As many as a search can be told of at once without finding less, and no more than gain time: on a CPU its threads; on a
    GPU what fits its memory, all of it and not what happens to be free, so that a study goes on as it began.
    """
    if materials.device.type == "cpu":
        return min(MOST_AT_ONCE, settings.threads or most_threads())
    memory = torch.cuda.get_device_properties(materials.device).total_memory
    return max(1, min(MOST_AT_ONCE, int(MEMORY_SHARE * memory / _activation_bytes(settings, materials, recipe))))


def _activation_bytes(settings: StudySettings, materials: StudyContext, recipe: Recipe) -> int:
    """What one candidate's step keeps for its backward, by the longest rows."""
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
    """Of the unfinished runs those with the fewest epochs, which can be stacked."""
    left = [run for run in runs if not run.over(recipe)]
    first = min(left, key=_rung, default=None)
    return [] if first is None else [run for run in left if _rung(run) == _rung(first)]


def _rung(run: Run) -> tuple[int, int]:
    """Runs on the same one can be stacked."""
    return len(run.progress.epochs), run.kind


def _train_level(ground: Ground, level: list[Run], runs: Sequence[Run], on_epoch: OnEpoch) -> None:
    """Train runs on one rung until one of them is over, or they have caught up with others."""
    stack = Stack(ground, level)
    while True:
        for run, epoch in zip(level, stack.epoch(_rung(level[0])[0]), strict=True):
            run.add(epoch, ground.flat, peers=ground.peers)
            if run.error is None:  # what is saved is told: whoever breaks off here trains the others' epoch again
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
    """What a checkpoint is of."""
    own = [choice.record() for choice in candidate.layout.own_choices]
    return {
        "layout": str(candidate.layout),
        **({"choices": own} if own else {}),
        "seed": candidate.seed,
        "recipe": recipe.record(),
        "study": objective_hash(settings),
    }


def objective_hash(settings: StudySettings) -> str:
    """What of a study decides a training's result, beside its recipe: 16 hexadecimal digits."""
    free = {
        "name",
        "device",
        "threads",
        "compile",
        "graphs",
        "recompute",
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
    """Bytes: the GPU's peak since the training began, or the process's own peak on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

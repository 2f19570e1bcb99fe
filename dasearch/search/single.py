"""One layout, without a search: trained on everyone and saved, or a saved one evaluated."""

from __future__ import annotations

from pathlib import Path

from dasearch.config import resolve_output, with_found
from dasearch.data import Dataset, LeaveOneOut
from dasearch.errors import ModelFolderError, StudyError, spelled
from dasearch.layout import Layout, require_lora_sites
from dasearch.layout_file import Metric
from dasearch.search.confirmation import ALL_PARALLEL, ALL_SERIAL, winner_of
from dasearch.search.events import SINGLE, Finished, Listener, Training
from dasearch.search.objective import TRIAL_SEED, Objective
from dasearch.search.progress import heard
from dasearch.search.runs import RunId, RunPhase
from dasearch.search.store import require_writable
from dasearch.search.study import Study
from dasearch.search_space import SearchSpace
from dasearch.short_layout import is_layout_id, layout_of_id
from dasearch.threads import using
from dasearch.training.evaluation import final_ranks, rank_validation
from dasearch.training.loop import Trained
from dasearch.training.materials import resolve_device
from dasearch.training.metrics import Metrics, summarise
from dasearch.training.preparation import prepare_study
from dasearch.training.ranks import Peers, joined
from dasearch.training.recommender import Recommender, save_recommender
from dasearch.training.sharding import require_ranks, whole_weights
from dasearch.training.shared import Passing

BEST = "best"


def named_layout(name: str, study: Study, space: SearchSpace) -> Layout:
    """A layout by its letters, by its id among the study's, or ``all-serial``, ``all-parallel``, ``best`` of the study so far.

    Raises:
        LayoutError: for letters that do not fit the space or the model, or an id that is unknown or ambiguous.
        StudyError: for ``best`` of a study without a completed trial.
    """
    n, sites = space.layers, len(space.sites)
    name = spelled(name, (ALL_SERIAL, ALL_PARALLEL, BEST))
    if name in (ALL_SERIAL, ALL_PARALLEL):
        return space.all_serial if name == ALL_SERIAL else space.nearest(Layout.all_parallel(n, sites))
    if is_layout_id(name):
        listed = study.status()
        return layout_of_id(name, listed.layouts, source=f"study {listed.name!r}").require(n, sites)
    if name != BEST:
        layout = space.parse(name).require(n, sites)
        require_lora_sites(layout, space.sites)
        return layout
    status = study.status()
    winner = winner_of(status.results, status.standings, space, status.selection)
    if winner is not None:
        return winner
    if status.best is None or status.best.layout is None:
        raise StudyError(f"study {status.name!r} has no completed trial yet; name a layout, or run it first")
    return status.best.layout


def train_layout(
    study: Study,
    name: str,
    *,
    out: Path | None = None,
    listener: Listener | None = None,
    progress: bool = True,
) -> tuple[Path, Trained]:
    """Train one layout by the study's final recipe on all users and save it; the test split is not read.

    ``best`` is trained under the settings that the search found besides it.

    Resumes from its last epoch if it was interrupted. The ranks of a torchrun share the training; rank 0 saves it and
    shows the progress, as `Study.run` does. If they share the frozen layers (``shard``), the returned model lacks those of the
    other ranks; load the folder.
    """
    with (
        using(study.settings.threads),
        joined(resolve_device(study.settings.device)) as peers,
        heard(listener, progress=progress and peers.first) as listening,
    ):
        return _train_layout(study, name, out, listening, peers)


def _train_layout(study: Study, name: str, out: Path | None, heard: Listener, peers: Peers) -> tuple[Path, Trained]:
    require_ranks(study.settings.shard, peers)
    peers.require_shares("final.accumulate", study.settings.final.accumulate)
    space = study.space()
    layout = named_layout(name, study, space)
    settings = with_found(study.settings, study.status().settings_found) if name.lower() == BEST else study.settings
    folder = out or resolve_output(settings) / "models" / str(layout)
    if folder.exists() and not (folder / "layout.json").is_file():
        raise ModelFolderError(f"{folder} exists and is not a model folder; choose another with --out")
    heard.says(Passing("reading the data"))
    dataset = study.dataset()
    for remark in dataset.remarks:
        heard.remarks(remark)
    require_writable(folder.parent)
    development = LeaveOneOut(dataset).development
    materials = prepare_study(
        settings, dataset, development, say=heard.says, language_model=heard.language_model, peers=peers
    )
    checkpoints = folder.parent / "checkpoints"
    objective = Objective(settings, materials, settings.final, space.file.structure, checkpoints, peers=peers)
    chosen_by = settings.search.metric
    training = Training(SINGLE, 1, 1, layout, settings.model.label, settings.final.epochs, chosen_by)
    heard.started(training)
    run = str(RunId(RunPhase.SINGLE, str(layout), model=settings.model.label))
    trained = objective.train(layout, run=run, seed=TRIAL_SEED, on_epoch=lambda epoch: heard.epoch(training, epoch))
    metric = Metric(name=chosen_by, value=trained.metrics.record()[chosen_by])
    weights = whole_weights(materials.catalogue.backbone)
    if peers.first:
        save_recommender(folder, trained, settings, materials, dataset, metric=metric, weights=weights)
        objective.forget(run)
    heard.finished(Finished(training, metric.value, None, None, trained.seconds, 0.0))
    return folder, trained


def evaluate_saved(recommender: Recommender, *, source: str | None = None, test: bool = False) -> Metrics:
    """Validation metrics (``test``: test metrics) of a saved model on its own data set, or on one with the same catalogue.

    Raises:
        ModelFolderError: if the data set has other items or users than the model.
    """
    dataset = Study(recommender.settings).dataset(source)
    _require_same(recommender, dataset)
    split = LeaveOneOut(dataset)
    layout = recommender.model.layout_tensor(recommender.layout)
    if test:
        return summarise(final_ranks(recommender.model, recommender.catalogue, split.open_test(), layout))
    return summarise(rank_validation(recommender.model, recommender.catalogue, split.development, layout).ranks)


def _require_same(recommender: Recommender, dataset: Dataset) -> None:
    if [item.identifier for item in dataset.items] != [item.identifier for item in recommender.items]:
        raise ModelFolderError(
            f"{dataset.name} has another catalogue than the model was trained on; give --data with the same items"
        )
    if list(dataset.users) != list(recommender.users):
        raise ModelFolderError(
            f"{dataset.name} has other users than the model was trained on; give --data with the same users"
        )

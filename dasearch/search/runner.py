"""One process working on one study: search, confirmation, final training.

Each step is recorded before the next begins, so that a killed study resumes where it stopped. Liu et al. 2024 (DARec),
alg. 1 and sec. 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from dasearch.config import StudySettings, resolve_output, with_found
from dasearch.data import Dataset, LeaveOneOut
from dasearch.folders import sha256
from dasearch.layout import Layout
from dasearch.layout_file import Metric
from dasearch.models.cost import Cost, SiteCosts, layout_costs
from dasearch.search.confirm import confirm
from dasearch.search.confirmation import WINNER, recommended
from dasearch.search.domain import Domain, settings_text
from dasearch.search.events import CONFIRMATION, FINAL, SEARCH, Listener
from dasearch.search.executors import Workers
from dasearch.search.executors.chosen import executor_of
from dasearch.search.final import FinalModels, evaluate_finally, final_rows, train_rows
from dasearch.search.front import Selection
from dasearch.search.id_models import EncoderTrainings, encoder_seconds
from dasearch.search.loop import Search
from dasearch.search.objective import TRIAL_SEED, Prepared
from dasearch.search.store import Artifact, FinalTraining, Result, Store
from dasearch.search.trainings import Ahead, Trainings, final_trainings
from dasearch.search_space import SearchSpace
from dasearch.training.loop import Trained
from dasearch.training.preparation import build_model, prepare_study
from dasearch.training.recommender import save_recommender


class Runner:
    """One process working on one study: the driver, wherever the trainings run.

    Args:
        workers: None: the trainings run in this process.
    """

    def __init__(
        self,
        settings: StudySettings,
        space: SearchSpace,
        dataset: Dataset,
        store: Store,
        listener: Listener,
        workers: Workers | None = None,
    ) -> None:
        self.settings, self.space, self.store, self.listener = settings, space, store, listener
        self.dataset = dataset
        self.split = LeaveOneOut(dataset)
        self.materials = prepare_study(
            settings,
            dataset,
            self.split.development,
            say=listener.says,
            language_model=listener.language_model,
        )
        self.executor = executor_of(settings, workers, listener)
        self.prepared = self._prepared()
        self.id_model_seconds: list[float] = []
        self.trainings = self._trainings(Ahead())

    def _prepared(self) -> Prepared:
        try:
            return self.executor.prepare(self.materials)
        except BaseException:
            self.executor.close()
            raise

    def _trainings(self, ahead: Ahead) -> Trainings:
        given = (self.settings, self.space, self.materials, self.store, self.listener)
        return Trainings(*given, self.executor, self.prepared, ahead)

    def run(self, *, train: bool) -> None:
        """Run the phases; each resumes where it stopped. All workers are ended."""
        with closing(self.executor):
            if train:
                self.id_model_seconds = encoder_seconds(self.settings, self.materials)
                self.trainings.ahead = Ahead(final_trainings(self.settings), sum(self.id_model_seconds))
            self._run(train=train)

    def _run(self, *, train: bool) -> None:
        name = self.settings.name
        self.store.enter_phase(name, SEARCH)
        selection = Selection.of(self.settings.search, self._costs())
        costs = None if selection is None else selection.costs
        domain = Domain.of(self.settings, self.space)
        search = Search(domain, self.trainings, costs)
        search.run()
        signals = search.signals()
        self._hold(domain.named(domain.best_values(signals)))
        self.store.enter_phase(name, CONFIRMATION)
        ranked = confirm(self.trainings, domain, signals, costs)
        if train:
            self.store.enter_phase(name, FINAL)
            self.train_finally((selection or recommended)(ranked).layout)
        self.executor.forget_all(self.trainings.checkpoints)

    def _hold(self, values: Mapping[str, Any]) -> None:
        """Use the values that the search found for settings besides the layout in all further trainings."""
        if values:
            self.listener.says(f"settings found: {settings_text(values)}")
            self.settings = with_found(self.settings, values)
            self.materials = self.materials.under(self.settings)
            before, self.trainings = self.trainings, self._trainings(self.trainings.ahead)
            self.trainings.pace = before.pace

    def _costs(self) -> dict[Cost, SiteCosts]:
        """The costs of layouts, counted once per study; None for a study without a cost."""
        if self.settings.search.cost is None:
            return {}
        costs = self.store.costs(self.settings.name)
        if not costs:
            model = build_model(self.settings, self.materials, self.space.file.structure, seed=TRIAL_SEED)
            costs = layout_costs(model, self.space, item_tokens=self.settings.data.item_tokens)
            self.store.add_costs(self.settings.name, costs)
        return costs

    def train_finally(self, winner: Layout) -> None:
        """Train every row of the results table on all users, then evaluate them on the test split, once."""
        rows = final_rows(self.settings, self.space, winner)
        encoders = EncoderTrainings(self.trainings, self.materials, self.id_model_seconds)
        encoders.begin()
        trained = train_rows(self.trainings, rows)
        rows = {name: model for name, model in rows.items() if model in trained}
        finalists = FinalModels(rows, trained, encoders.ended())
        self.listener.says("reading the test split, once")
        results, trainings = evaluate_finally(finalists, self.materials, self.split, seed=self.settings.seed)
        saved = self._save(trained[rows[WINNER]][0], results, trainings)
        self.store.finish(self.settings.name, results, [saved], trainings)
        self.listener.results(results)

    def _save(self, winner: Trained, results: list[Result], trainings: list[FinalTraining]) -> Artifact:
        """Save the winner of the first seed: ``layout.json`` has the layout's mean score and the model's own metrics."""
        metric = self.settings.search.metric
        (score,) = (result for result in results if (result.name, result.metric) == (WINNER, metric))
        (own,) = (training for training in trainings if (training.name, training.seed) == (WINNER, 0))
        folder = save_recommender(
            resolve_output(self.settings) / "model",
            winner,
            self.settings,
            self.materials,
            self.dataset,
            metric=Metric(name=metric, value=score.value, low=score.low, high=score.high, split="test"),
            results={"test": own.metrics},
        )
        return Artifact("model", folder.relative_to(folder.parents[1]).as_posix(), sha256(folder))

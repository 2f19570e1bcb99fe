"""Selects a confirmed layout of a study with a cost by ``--pick``."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from dasearch.config import Pick, StudySettings, parse_study, with_found
from dasearch.errors import ExportError, spelled, suggestion
from dasearch.layout import Layout
from dasearch.layout_file import LayoutFile, Metric
from dasearch.search.confirmation import WINNER, ConfirmedLayout, standings
from dasearch.search.domain import Domain
from dasearch.search.front import Selection
from dasearch.search.store import open_store
from dasearch.search.study import signals_of, stored_space
from dasearch.search_space import SearchSpace
from dasearch.training.recommender import layout_file_of


@dataclass(frozen=True)
class Picked:
    """A confirmed layout of a study.

    Attributes:
        trained: whether it is the winner that the study trained in full.
    """

    settings: StudySettings
    space: SearchSpace
    standing: ConfirmedLayout
    trained: bool

    @property
    def layout(self) -> Layout:
        """The layout itself."""
        return self.standing.layout

    @property
    def layout_file(self) -> LayoutFile:
        """The layout with its validation score over fresh seeds; a single seed has no interval."""
        score = self.standing.score
        ends = {"low": score.low, "high": score.high} if self.standing.seeds > 1 else {}
        metric = Metric(name=self.settings.search.metric, value=score.mean, **ends)
        layers, replaced = self.space.backbone_layers, self.space.replaced
        return layout_file_of(self.settings, self.layout, layers=layers, replaced=replaced, metric=metric)


def known_pick(name: str | None) -> Pick | None:
    """A pick by its name; None for None.

    Raises:
        ExportError: for an unknown name.
    """
    if name is None:
        return None
    if (known := spelled(name, Pick)) in list(Pick):
        return Pick(known)
    raise ExportError(f"there is no pick {name!r}{suggestion(name, list(Pick))}; choose {', '.join(Pick)}")


def picked_of(study: str, pick: Pick, *, output: str = "runs", storage: str | None = None) -> Picked:
    """The layout that a study's confirmed front has for a pick.

    Raises:
        ExportError: for a study without a cost, or nothing confirmed yet.
        StoreError: if there is no such study.
    """
    if Path(study).name != study:
        raise ExportError(f"--pick chooses among the confirmed layouts of a study, which {study} is not; name a study")
    with closing(open_store(storage, output, create=False)) as store:
        stored = store.begun(study)
        settings, space = parse_study(stored.settings, source=f"study {study}"), stored_space(stored)
        domain = Domain.of(settings, space)
        found_values = domain.best_values(signals_of(store.trials(study), domain))
        settings = with_found(settings, domain.named(found_values))
        confirmed = standings(store.confirmations(study), space.all_serial, settings.search.metric)
        selection = Selection.of(settings.search, store.costs(study))
        winners = {result.layout for result in store.results(study) if result.name == WINNER}
    if settings.search.cost is None:
        raise ExportError(
            f"study {study} has no cost as an objective, so there is no front to pick from; remove --pick, or run one with "
            "--set 'search.objective={pareto: [mrr, parameters]}'"
        )
    if selection is None or not confirmed:
        raise ExportError(f"study {study} has no confirmed layouts yet; run `dasearch run {study}` first")
    standing = replace(selection, pick=pick)(confirmed)
    return Picked(settings, space, standing, str(standing.layout) in winners)


def require_trained(picked: Picked, pick: Pick, form: str) -> None:
    """Reject a format that needs weights for a layout that has none.

    Raises:
        ExportError: if the study did not train the layout.
    """
    if picked.trained:
        return
    name, layout = picked.settings.name, picked.layout
    raise ExportError(
        f"format {form} needs trained weights, and {layout}, the {pick} of study {name}, is not the layout that it trained; "
        f"train it with `dasearch train {name} --layout {layout}` and export the folder that this prints"
    )

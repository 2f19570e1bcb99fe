"""The confirmation phase: trains the best layouts and the controls again, for `confirmation` to compare."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from dasearch.layout import Layout
from dasearch.models.cost import SiteCosts
from dasearch.search.confirmation import (
    ConfirmationCandidate,
    ConfirmedLayout,
    by_posterior_mean,
    contenders,
    standings,
)
from dasearch.search.domain import Domain, Point
from dasearch.search.events import CONFIRMATION, Training
from dasearch.search.front import by_front
from dasearch.search.objective import Run
from dasearch.search.runs import RunId, RunPhase
from dasearch.search.store import Confirmation
from dasearch.search.trainings import Planned, Trainings
from dasearch.training.progress import Fit


def confirm(
    trainings: Trainings, domain: Domain, signals: Mapping[Point, float], costs: SiteCosts | None = None
) -> list[ConfirmedLayout]:
    """Train the best layouts and the controls again with fresh seeds, the same for each; the best mean first.

    A layout is dropped if one of its trainings fails, except all-serial, the baseline of the comparisons.

    Args:
        trainings: under the values that the search found for settings besides the layout.
        domain: of the evaluated points.
        signals: what the surrogate learned from every evaluated point.
        costs: in a study with a cost, whose front is confirmed.
    """
    settings, store = trainings.settings, trainings.store
    search = settings.search
    order = by_posterior_mean if costs is None else partial(by_front, costs=costs, k=search.candidates)
    candidates = contenders(domain, signals, candidates=search.candidates, seed=settings.seed, order=order)
    roles = {contender.layout: contender.role for contender in candidates}
    done = {_run_name(c.layout, c.seed) for c in store.confirmations(settings.name)}
    missing = [one for one in _planned(trainings, candidates) if one.run.name not in done]

    def keep(one: Planned, fit: Fit) -> None:
        layout, name, seed = one.run
        record = Confirmation(layout, roles[layout], seed, fit.metrics.record(), fit.seconds)
        store.add_confirmation(settings.name, record)
        trainings.forget(name)

    serial = domain.space.all_serial
    confirmed = trainings.later([(trainings.short, missing)], keep, needed=lambda one: one.run.layout == serial)
    failed = {one.run.layout for one in missing if one.run.name not in confirmed}
    kept = [c for c in store.confirmations(settings.name) if c.layout in roles and c.layout not in failed]
    return standings(kept, serial, search.metric)


def _planned(trainings: Trainings, found: list[ConfirmationCandidate]) -> list[Planned]:
    """Every contender with every seed."""
    settings = trainings.settings
    epochs, metric = settings.trial.epochs, settings.search.metric
    seeds = range(1, settings.search.confirm_seeds + 1)
    each = [(contender, seed) for seed in seeds for contender in found]
    return [
        Planned(
            Training(CONFIRMATION, index, len(each), one.layout, f"{one.role}, seed {seed}", epochs, metric),
            Run(one.layout, _run_name(one.layout, seed), seed),
        )
        for index, (one, seed) in enumerate(each, start=1)
    ]


def _run_name(layout: Layout, seed: int) -> str:
    return str(RunId(RunPhase.CONFIRM, str(layout), seed))

"""Cached reading of studies for the dashboard: a study is read again only when its records changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import plotly.graph_objects as go
from sqlalchemy.exc import DatabaseError

from dasearch.errors import DasearchError, NoStudies, StoreError, WrongUse, suggestion
from dasearch.report.figures import FIGURES, Drawing
from dasearch.report.figures.trials import TRIAL_FIGURES, TrialDrawing
from dasearch.report.theme import Theme
from dasearch.report.view import StudyView, Trial, TrialDifference, read_view
from dasearch.search.store import Progress, Store

LOCK_SECONDS = 3.0  # a page that waits longer for a locked database shows an error
KEPT = 4  # studies kept in memory; one of 1,000 trials and 90 sites takes tens of megabytes


class Missing(WrongUse):
    """A page or record that does not exist."""


class Unavailable(DasearchError):
    """A database that is currently unreadable."""


@dataclass
class Snapshot:
    """A study at one version, with a cache of its figures."""

    progress: Progress
    view: StudyView
    _drawn: dict[tuple[str, tuple[int, ...], str], go.Figure] = field(default_factory=dict)
    _drawing: threading.RLock = field(default_factory=threading.RLock)

    def trial(self, number: int) -> Trial:
        """A trial.

        Raises:
            Missing: if there is none of that number.
        """
        with _missing():
            return self.view.trial(number)

    def difference(self, before: int, after: int) -> TrialDifference:
        """From one trial to another.

        Raises:
            Missing: if there is no such trial, or one has no layout yet.
        """
        with _missing():
            return self.view.difference(before, after)

    def figure(self, key: str, trials: Sequence[int], theme: Theme) -> go.Figure:
        """A figure of `FIGURES`, or of `TRIAL_FIGURES` for some trials.

        Raises:
            Missing: if there is no such figure or trial, or a trial has no layout yet.
        """
        wanted = (key, tuple(trials), theme.name)
        with self._drawing:  # the surrogate is fitted once, not by every concurrent figure
            if wanted not in self._drawn:
                self._drawn[wanted] = self._draw(key, trials, theme)
            return self._drawn[wanted]

    def _draw(self, key: str, trials: Sequence[int], theme: Theme) -> go.Figure:
        find_drawing(key)
        if key in FIGURES:
            return FIGURES[key].draw(self.view, theme)
        with _missing():
            return TRIAL_FIGURES[key].draw(self.view, trials, theme)


@contextmanager
def _missing() -> Iterator[None]:
    """Turn `WrongUse`, as raised for the command line, into `Missing`."""
    try:
        yield
    except WrongUse as error:
        raise Missing(str(error)) from None


def find_drawing(key: str) -> Drawing | TrialDrawing:
    """A figure by its key.

    Raises:
        Missing: if there is none.
    """
    known: dict[str, Drawing | TrialDrawing] = {**FIGURES, **TRIAL_FIGURES}
    if key not in known:
        raise Missing(f"there is no figure {key!r}{suggestion(key, list(known))}; figures are {', '.join(known)}")
    return known[key]


class Reader:
    """Reads one database; thread-safe.

    Args:
        connect: opens the database; called for every answer, so that a moved file is noticed.
        first: the command that begins a study in it.
    """

    def __init__(self, connect: Callable[[], Store], first: str = "dasearch run") -> None:
        self._connect = connect
        self.first = first
        self._kept: OrderedDict[str, Snapshot] = OrderedDict()
        self._reading = threading.Lock()

    def studies(self) -> list[Progress]:
        """Progress of every study, the newest first; empty where there is no database yet."""
        with suppress(NoStudies), self._store() as store:
            return [store.progress(name) for name in reversed(store.study_names())]
        return []

    def progress(self, name: str) -> Progress:
        """Progress of a study."""
        with self._store() as store:
            _require(store, name)
            return store.progress(name)

    def snapshot(self, name: str) -> Snapshot:
        """The current snapshot of a study."""
        with self._reading, self._store() as store:
            _require(store, name)
            progress = store.progress(name)
            cached = self._kept.get(name)
            if cached is None or cached.progress.version != progress.version:
                cached = Snapshot(progress, read_view(store, name))
            cached.progress = progress  # heartbeats do not change the version
            self._keep(name, cached)
            return cached

    def _keep(self, name: str, found: Snapshot) -> None:
        self._kept[name] = found
        self._kept.move_to_end(name)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    @contextmanager
    def _store(self) -> Iterator[Store]:
        try:
            store = self._connect()
            try:
                yield store
            finally:
                store.close()
        except NoStudies:
            raise
        except StoreError as error:
            raise Unavailable(str(error)) from None
        except DatabaseError as error:
            reason = " ".join(str(error.orig).split())
            raise Unavailable(f"the database cannot be read now ({reason}); this page tries again") from None


def _require(store: Store, name: str) -> None:
    known = store.study_names()
    if name not in known:
        near = suggestion(name, known) or (f"; studies are {', '.join(known[:10])}" if known else "")
        raise Missing(f"there is no study {name!r} in this database{near}")

"""Two trials of a study, or two studies, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from dasearch.config import flattened
from dasearch.fitting import plain_table
from dasearch.layout import Difference, Layout
from dasearch.report.document import Table, shown
from dasearch.report.figures.layouts import difference_in_words
from dasearch.report.terminal import finite_record, spread, symmetric
from dasearch.report.view import StudyView, Trial, TrialDifference
from dasearch.search.confirmation import ConfirmedLayout
from dasearch.search.store import Result
from dasearch.search.study import settings_differences
from dasearch.short_layout import short_text

LAYOUT_WIDTH = 28  # characters: two columns and the row names fit in a line of 80
OWN = {"name", "output"}  # settings that any two studies differ in


@dataclass(frozen=True)
class StudyDifference:
    """The differences between two studies.

    Attributes:
        sites: at which the winners differ; None where their layouts have different shapes, or one has none yet.
        settings: values by dotted key, in the first and the second study.
    """

    before: StudyView
    after: StudyView
    sites: tuple[Difference, ...] | None
    settings: dict[str, tuple[Any, Any]]

    @property
    def studies(self) -> tuple[StudyView, StudyView]:
        """Both studies, the first and the second."""
        return self.before, self.after


def compare_studies(before: StudyView, after: StudyView) -> StudyDifference:
    """Compare the winners and the settings of two studies."""
    first, second = (view.settings.model_dump(mode="json") for view in (before, after))
    keys = [key for key in settings_differences(first, second) if key not in OWN]
    first, second = flattened(first), flattened(second)
    settings = {key: (first.get(key), second.get(key)) for key in keys}
    return StudyDifference(before, after, _winner_sites(before, after), settings)


def _winner_sites(before: StudyView, after: StudyView) -> tuple[Difference, ...] | None:
    first, second = before.winner, after.winner
    if first is None or second is None or before.space.names != after.space.names:
        return None
    return first.diff(second)


def study_sentences(found: StudyDifference) -> list[str]:
    """The comparison of two studies in sentences."""
    sentences = [_sites_text(found)]
    if found.before.dataset.get("fingerprint") != found.after.dataset.get("fingerprint"):
        sentences.append("Their data differ, so their scores do not compare.")
    return sentences if found.settings else [*sentences, "Their settings are the same."]


def study_tables(found: StudyDifference) -> list[Table]:
    """Tables of winners and scores, sites, test results and settings; some may have no rows."""
    names = (found.before.name, found.after.name)
    metric = " and ".join(dict.fromkeys(view.metric for view in found.studies))
    facts = {"layout": _winner_text, f"validation {metric}": _score_text, "phase": _phase_text}
    winners = tuple((label, *map(cell, found.studies)) for label, cell in facts.items())
    settings = tuple((key, *map(shown, values)) for key, values in found.settings.items())
    caption = "Test split: mean ± sd over seeds, 95% interval over users"
    return [
        Table("Winners, or the best so far", ("", *names), winners),
        sites_table(found.before, found.sites or (), names),
        Table(caption, ("row", "metric", *names), _result_rows(found)),
        Table("Settings that differ", ("setting", *names), settings),
    ]


def show_study_difference(console: Console, found: StudyDifference) -> None:
    """Print the winners, the comparison in sentences, and the other tables."""
    winners, *others = study_tables(found)
    _print(console, winners)
    for sentence in study_sentences(found):
        console.print(Text(sentence), soft_wrap=True)
    for table in others:
        _print(console, table)


def _print(console: Console, found: Table) -> None:
    """A table whose cells are plain text, not markup, wrapped between words where they do not fit."""
    if not found.rows:
        return
    table = plain_table(found.caption)
    for heading in found.headings:
        table.add_column(Text(heading), overflow="fold")
    for row in found.rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _winner_text(view: StudyView) -> str:
    return "none yet" if view.winner is None else f"{short_text(view.winner)}, {view.best_word}"


def _phase_text(view: StudyView) -> str:
    return f"{view.phase}, {len(view.completed)} of {view.settings.search.budget} evaluations"


def _score_text(view: StudyView) -> str:
    if view.standings:
        return f"{symmetric(view.standings[0].score)} ({view.standings[0].seeds} seeds, 95% t interval)"
    return "" if view.best is None else f"{view.best.score:.4f} (one training)"


def _sites_text(found: StudyDifference) -> str:
    if found.sites is None:
        return "The winners cannot be compared site by site: one study has none yet, or their sites differ."
    if not found.sites:
        return "Both have the same winner."
    return f"The winners differ at {len(found.sites)} of {len(found.before.space.names)} sites."


def sites_table(view: StudyView, sites: Sequence[Difference], names: tuple[str, ...]) -> Table:
    """One row per site that differs."""
    rows = tuple((site_name(view, difference), difference.before, difference.after) for difference in sites)
    return Table("Sites that differ", ("site", *names), rows)


def site_name(view: StudyView, difference: Difference) -> str:
    """``layer03.context``."""
    return view.space.names[difference.layer * len(view.space.sites) + difference.site]


def _result_rows(found: StudyDifference) -> tuple[tuple[str, ...], ...]:
    """One row per row of the results table and metric, with both studies' values."""
    by_row = [{(r.name, r.metric): r for r in view.results} for view in found.studies]
    keys = dict.fromkeys(key for results in by_row for key in results)
    return tuple((*key, *(_result_text(results.get(key)) for results in by_row)) for key in keys)


def _result_text(result: Result | None) -> str:
    if result is None:
        return ""
    interval = "" if result.low is None else f" [{result.low:.4f}, {result.high:.4f}]"
    return spread(result) + interval


def show_trial_difference(console: Console, view: StudyView, found: TrialDifference) -> None:
    """Print the layouts, their differences, and the scores of two trials."""
    trials = (found.before, found.after)
    names = (f"trial {found.before.number}", f"trial {found.after.number}")
    labels = ("layout", "state", f"validation {view.metric}", "seconds")
    rows = tuple(zip(labels, *map(_trial_cells, trials), strict=True))
    _print(console, Table(f"Trials of {view.name}", ("", *names), rows))
    _print(console, sites_table(view, found.sites, names))
    console.print(Text(difference_in_words(found)), soft_wrap=True)


def _trial_cells(trial: Trial) -> tuple[str, ...]:
    score = "" if trial.score is None else f"{trial.score:.4f}"
    seconds = "" if trial.seconds is None else f"{trial.seconds:.1f}"
    layout = "" if trial.layout is None else short_text(trial.layout, LAYOUT_WIDTH)
    return layout, trial.state.value, score, seconds


def study_difference_record(found: StudyDifference) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "studies": [_study_record(view) for view in found.studies],
        "sites": None if found.sites is None else _sites_record(found.before, found.sites),
        "settings": {key: list(values) for key, values in found.settings.items()},
    }


def _study_record(view: StudyView) -> dict[str, Any]:
    top: ConfirmedLayout | None = view.standings[0] if view.standings else None
    return {
        "name": view.name,
        "phase": view.phase,
        "winner": _layout_record(view.winner),
        "confirmed": None if top is None else {**finite_record(top.score), "seeds": top.seeds},
        "best_score": None if view.best is None else view.best.score,
        "results": [result._asdict() for result in view.results],
    }


def trial_difference_record(view: StudyView, found: TrialDifference) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "study": view.name,
        "trials": [
            {
                "number": trial.number,
                "layout": _layout_record(trial.layout),
                "state": trial.state.value,
                "score": trial.score,
                "seconds": trial.seconds,
            }
            for trial in (found.before, found.after)
        ],
        "sites": _sites_record(view, found.sites),
        "score": found.score,
        "confirmed": None if found.confirmed is None else finite_record(found.confirmed),
    }


def _layout_record(layout: Layout | None) -> str | None:
    return None if layout is None else str(layout)


def _sites_record(view: StudyView, sites: tuple[Difference, ...]) -> list[dict[str, str]]:
    return [{"site": site_name(view, d), "before": d.before, "after": d.after} for d in sites]

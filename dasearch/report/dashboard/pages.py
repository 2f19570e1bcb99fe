"""The content of the dashboard's pages: sections of sentences, figures and tables, as in a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dasearch.bayes import Proposal
from dasearch.config import SearchSettings
from dasearch.layout import Layout
from dasearch.report.document import (
    MIB,
    WHEN,
    Listing,
    Section,
    Table,
    confirmation_table,
    costs_table,
    data_table,
    facts_table,
    front_figures,
    front_table,
    learned_figures,
    log_section,
    results_table,
    space_table,
    trials_table,
)
from dasearch.report.figures.search import against_odds, odds
from dasearch.report.figures.structure import short
from dasearch.report.terminal import failures, symmetric
from dasearch.report.theme import CHOICE_COLOURS, OWN_COLOURS, choice_colours, ink_on, written
from dasearch.report.view import StudyView, Trial
from dasearch.search.causes import attempts
from dasearch.search.domain import settings_text
from dasearch.search.store import Progress
from dasearch.search_space import SearchSpace

AGAINST = "a rarer sample, or a change after the climb"


def studies_table(found: list[Progress]) -> Table:
    """One row per study."""
    rows = [
        (
            one.name,
            one.phase,
            f"{one.states.get('complete', 0)} of {one.settings['search']['budget']}",
            ""
            if one.best is None
            else f"{SearchSettings.model_validate(one.settings['search']).metric} {one.best:.4f}",
            str(sum(one.states.get(state, 0) for state in ("fail", "pruned"))),
            str(one.settings["model"]["kind"]),
            str(one.settings["data"]["source"]),
        )
        for one in found
    ]
    headings = ("study", "phase", "evaluations", "best score", "failed or pruned", "model", "data")
    return Table("Studies in this database, the newest first", headings, tuple(rows))


def study_sections(view: StudyView) -> list[Section]:
    """The sections below the verdict. Surrogate effects are shown in figures only, so that a page does not wait for a fit."""
    return [
        Section(
            "results",
            "Confirmation and test results",
            () if view.standings else ("Nothing is confirmed with fresh seeds yet.",),
            (*front_figures(view), "confirmation", "difference"),
            (results_table(view), confirmation_table(view), front_table(view), costs_table(view)),
        ),
        Section("structure", "What was learned", figures=learned_figures(view)),
        Section("search", "The search", figures=("curves", "probabilities", "calibration", "cost", "timeline")),
        Section("trials", "Trials", tuple(_trial_sentences(view)), tables=(trials_table(view),)),
        Section(
            "configuration",
            "Configuration and data",
            tables=(facts_table(view), data_table(view), space_table(view)),
            listings=(Listing(f"The study as resolved, {view.name}.yaml", view.settings.yaml()),),
        ),
        log_section(view),
    ]


def _trial_sentences(view: StudyView) -> list[str]:
    return failures(view) if view.trials else ["No trial has begun yet."]


@dataclass(frozen=True)
class Cell:
    """A site in a layout's map: whether it differs from another layout, and whether the search space fixes it."""

    site: str
    letter: str
    choice: str
    shade: str
    fixed: bool
    changed: bool


def shade(colour: str) -> str:
    """The CSS class of a choice's colour."""
    return f"shade-{colour.removeprefix('#')}"


def shades() -> dict[str, tuple[str, str]]:
    """Background and text colour of every such class."""
    colours = (*CHOICE_COLOURS.values(), *OWN_COLOURS)
    return {shade(colour): (colour, ink_on(colour)) for colour in colours}


def layout_map(space: SearchSpace, layout: Layout, before: Layout | None = None) -> list[tuple[str, list[Cell]]]:
    """One row per layer: its label and its sites."""
    colours = choice_colours(space.file.alphabet)
    changed = {(d.layer, d.site) for d in before.diff(layout)} if before is not None else set()
    rows = []
    for row, (layer, choices) in enumerate(zip(space.replaced, layout.groups, strict=True)):
        names = space.names[row * len(space.sites) :]
        cells = [
            Cell(
                site,
                choice.letter,
                choice.name,
                shade(colours[choice.name]),
                names[column] in space.fixed,
                (row, column) in changed,
            )
            for column, (site, choice) in enumerate(zip(space.sites, choices, strict=True))
        ]
        rows.append((f"layer {layer + 1}", cells))
    return rows


def trial_facts(view: StudyView, trials: Mapping[str, Trial]) -> Table:
    """The attributes of trials, one column per trial."""
    facts = {
        "state": lambda trial: trial.state.value,
        "layout": lambda trial: str(trial.layout or ("none" if trial.reason else "not proposed yet")),
        "in short": _in_short,
        "settings": lambda trial: settings_text(trial.settings),
        f"validation {view.metric}": lambda trial: "" if trial.score is None else f"{trial.score:.4f}",
        "seconds": lambda trial: "" if trial.seconds is None else f"{trial.seconds:.1f}",
        "trained parameters": lambda trial: "" if trial.parameters is None else f"{trial.parameters:,}",
        "peak memory": lambda trial: "" if trial.peak_memory is None else f"{trial.peak_memory / MIB:,.0f} MiB",
        "began": lambda trial: "" if trial.started is None else trial.started.strftime(WHEN),
        "ended": lambda trial: "" if trial.ended is None else trial.ended.strftime(WHEN),
        "repeats trial": lambda trial: "" if trial.retry_of is None else str(trial.retry_of),
        "trained": lambda trial: attempts(trial.workers),
        "note": lambda trial: trial.reason or "",
        "confirmed": lambda trial: confirmed(view, trial),
    }
    rows = ((label, *map(fact, trials.values())) for label, fact in facts.items())
    return Table("What is known", ("", *trials), tuple(row for row in rows if any(row[1:])))


def _in_short(trial: Trial) -> str:
    """A layout's id and its short text, as tables write it; empty for one that tables write in full."""
    text = "" if trial.layout is None else written(trial.layout)
    return "" if text == str(trial.layout) else text


def confirmed(view: StudyView, trial: Trial) -> str:
    """The confirmed score of the trial's layout."""
    match = next((standing for standing in view.standings if standing.layout == trial.layout), None)
    return "" if match is None else f"{symmetric(match.score)} over {match.seeds} seeds, as {match.role}"


def epochs_table(trial: Trial) -> Table:
    """Losses and metrics of every epoch."""
    losses = list(dict.fromkeys(name for epoch in trial.epochs for name in epoch.losses))
    metrics = list(dict.fromkeys(name for epoch in trial.epochs for name in epoch.metrics))
    rows = [
        (
            str(epoch.number + 1),
            *(_number(epoch.losses, name) for name in losses),
            *(_number(epoch.metrics, name) for name in metrics),
            f"{epoch.seconds:.1f}",
        )
        for epoch in trial.epochs
    ]
    named = ("validation loss" if name == "loss" else name for name in metrics)
    headings = ("epoch", *(f"loss: {name}" for name in losses), *named, "seconds")
    return Table("Epochs: mean of each loss term, validation metrics", headings, tuple(rows))


def _number(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.4f}" if name in values else ""


def proposal_tables(view: StudyView, trial: Trial) -> list[Table]:
    """Why the trial's layout was proposed: the acquisition's values, and probabilities by site."""
    proposal = next((one for one in view.proposals if one.trial_number == trial.number), None)
    if proposal is None:
        return []
    numbers = {"acquisition value": proposal.acquisition, "predicted mean": proposal.mean, "predicted sd": proposal.sd}
    facts = {"proposed by": proposal.source} | {k: f"{v:.5g}" for k, v in numbers.items() if v is not None}
    tables = [Table("Proposal", ("", ""), (*facts.items(), ("took", f"{proposal.seconds:.2f} s")))]
    if proposal.probabilities is not None:
        tables.append(_odds_table(view, proposal))
    return tables


def _odds_table(view: StudyView, proposal: Proposal) -> Table:
    """The probability of each choice, and the proposed one."""
    against = against_odds(view.space, proposal)
    chances = {
        site: odds(view.space, proposal, site) for site in proposal.probabilities or {} if site in view.space.choices
    }
    names = list(dict.fromkeys(name for own in chances.values() for name in own))
    rows = [
        (
            short(site),
            str(proposal.layout.get(site, "")),
            *(f"{own[name]:.3f}" if name in own else "" for name in names),
            AGAINST if site in against else "",
        )
        for site, own in chances.items()
    ]
    return Table(
        "Probabilities where the climb of the acquisition ended", ("site", "proposed", *names, "note"), tuple(rows)
    )


def neighbours(view: StudyView, trial: Trial) -> dict[str, int]:
    """Related trials, by relation."""
    numbers = [other.number for other in view.trials]
    at = numbers.index(trial.number)
    related = {"previous": numbers[at - 1]} if at else {}
    if at + 1 < len(numbers):
        related["next"] = numbers[at + 1]
    return related


def partners(view: StudyView, trial: Trial) -> dict[str, int]:
    """Trials to compare with, by relation."""
    serial = view.trial_of(view.space.all_serial)
    named: dict[str, Any] = {"the best trial": view.best, "all-serial": serial}
    return {label: other.number for label, other in named.items() if other is not None and other.layout != trial.layout}


def worth_comparing(view: StudyView) -> int | None:
    """A trial to compare the first one with: the best, or where that is the first itself, the last."""
    others = [trial.number for trial in view.trials[1:]]
    return view.best.number if view.best and view.best.number in others else next(reversed(others), None)

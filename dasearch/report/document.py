"""The content of a report, independent of its file format: sections of sentences, tables, listings and figure names."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from dasearch.config import flattened
from dasearch.report.terminal import (
    CORRECTED_P,
    against_baselines,
    conclusions,
    counted,
    failures,
    lead_text,
    p_text,
    spread,
    symmetric,
    warm_start,
)
from dasearch.report.theme import written
from dasearch.report.view import LEAD_METRIC, State, StudyView
from dasearch.search.causes import note
from dasearch.search.confirmation import WINNER
from dasearch.search.domain import number, settings_text
from dasearch.search.events import DONE, SEARCH
from dasearch.search.progress import clock

MIB = 2**20
WHEN = "%Y-%m-%d %H:%M UTC"


@dataclass(frozen=True)
class Table:
    """A table of text cells; one without rows is omitted."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Listing:
    """Preformatted text to be copied."""

    caption: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of a report; ``figures`` are keys of `dasearch.report.figures.FIGURES`."""

    key: str
    title: str
    sentences: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    listings: tuple[Listing, ...] = ()


def sections(view: StudyView) -> list[Section]:
    """A report, the verdict first."""
    return [
        Section(
            "verdict",
            "Verdict",
            tuple(verdict_sentences(view)),
            (*result_figures(view), "layout", *front_figures(view), "best-so-far", "confirmation", "difference"),
            (facts_table(view), front_table(view), costs_table(view)),
        ),
        Section(
            "results",
            "Confirmation and test results",
            tuple(_result_sentences(view)),
            tables=(results_table(view), confirmation_table(view)),
        ),
        Section(
            "structure",
            "What was learned",
            figures=learned_figures(view),
            tables=(effects_table(view), settings_table(view)),
        ),
        Section("search", "The search", figures=("curves", "probabilities", "calibration", "cost", "timeline")),
        Section("trials", "Trials", tuple(failures(view)), tables=(trials_table(view),)),
        Section("data", "Data", tuple(_data_sentences(view)), tables=(data_table(view),)),
        Section(
            "configuration",
            "Configuration",
            listings=(Listing(f"The study as resolved, {view.name}.yaml", view.settings.yaml()),),
            tables=(space_table(view),),
        ),
        Section(
            "reproduce",
            "How to reproduce",
            ("Install dasearch with the versions above, save the configuration above under its name, then:",),
            listings=(Listing("Commands", "\n".join(commands(view))),),
        ),
        log_section(view),
    ]


def log_section(view: StudyView) -> Section:
    """Reference material: every training after the search, versions, checksums."""
    tables = (trainings_table(view), later_table(view), versions_table(view), artifacts_table(view))
    return Section("log", "Trainings, versions and files", tables=tables)


def verdict_sentences(view: StudyView) -> list[str]:
    """The winner and its uncertainty."""
    best = view.best
    if best is None and any(trial.state is State.COMPLETE for trial in view.trials):
        return [
            "No complete trial has a layout of this search space, so there is no verdict; the trials' notes give the causes."
        ]
    if best is None:
        return [f"No trial is complete yet, so there is no verdict ({_states(view) or 'no trial has begun'})."]
    if not view.standings:
        return [
            f"Not confirmed yet: {written(best.layout) if best.layout else ''} is the best of "
            f"{counted(len(view.completed), 'evaluation')} with {view.metric} {best.score:.4f} from a single training. "
            "The best of several noisy scores is biased upwards; fresh seeds have to confirm it."
        ]
    sentences = conclusions(view.standings, view.trials, view.settings.search.worth, view.metric, view.selection)
    if any(result.lead is not None for result in view.results):
        sentences.append(against_baselines(view.results, LEAD_METRIC))
    if view.phase != DONE:
        sentences.append(f"The study is not finished; its phase is {view.phase}.")
    return sentences


def learned_figures(view: StudyView) -> tuple[str, ...]:
    """Figures of the surrogate; with one for settings where any are searched besides the layout."""
    return ("main-effects", "pairs", *(["settings"] if view.domain.also else []), "hamming")


def result_figures(view: StudyView) -> tuple[str, ...]:
    """The figure of test results, once the test split was read."""
    return ("results",) if view.results else ()


def front_figures(view: StudyView) -> tuple[str, ...]:
    """The figure of the front, in a study with a cost."""
    return () if view.settings.search.cost is None else ("front",)


def front_table(view: StudyView) -> Table:
    """Confirmed layouts by their cost, the cheapest first; empty without a cost."""
    selection, standings = view.selection, view.standings
    if selection is None or not standings:
        return Table("The front", (), ())
    on_front, picked = selection.front(standings), selection(standings)
    costs = {standing.layout: selection.costs.of(standing.layout) for standing in standings}
    whole = costs.get(view.space.all_serial) or selection.costs.of(view.space.all_serial)
    rows = [
        (
            written(s.layout),
            s.role,
            f"{costs[s.layout]:,}",
            f"{costs[s.layout] / whole:.1%}",
            symmetric(s.score),
            "" if s.simultaneous_interval is None else symmetric(s.simultaneous_interval, "+"),
            "yes" if s in on_front else "",
            selection.pick.value if s is picked else "",
        )
        for s in sorted(standings, key=lambda standing: costs[standing.layout])
    ]
    gain = "gain over all-serial, simultaneous interval"
    cost = selection.cost.words
    headings = ("layout", "role", cost, "of all-serial's", f"validation {view.metric}", gain, "on the front", "picked")
    return Table(
        f"The front of {view.metric} and {cost}, confirmed with fresh seeds (95% t intervals)", headings, tuple(rows)
    )


def costs_table(view: StudyView) -> Table:
    """The cost of each choice at a site of one layer; empty without a cost."""
    costs = view.costs
    rows = [
        (site, choice, *(f"{own.choices[site][choice]:,}" for own in costs.values()))
        for site, choices in (next(iter(costs.values())).choices.items() if costs else ())
        for choice in choices
    ]
    shared = dict.fromkeys(site for own in costs.values() for site in own.once)
    rows += [(s, "the first of all layers", *(f"{own.once.get(s, 0):,}" for own in costs.values())) for s in shared]
    if rows:
        rows.append(("", "no adapter at all", *(f"{own.base:,}" for own in costs.values())))
    return Table("Cost of each choice in a layer", ("site", "choice", *(cost.words for cost in costs)), tuple(rows))


def _states(view: StudyView) -> str:
    """``28 complete, 2 failed``."""
    numbers = {state: sum(trial.state is state for trial in view.trials) for state in State}
    return ", ".join(f"{n} {state.word}" for state, n in numbers.items() if n)


def facts_table(view: StudyView) -> Table:
    """The study at a glance."""
    settings, space = view.settings, view.space
    trained = sum(trial.seconds or 0.0 for trial in view.completed)
    final = {(t.layout, t.seed, t.seconds) for t in view.final_trainings}  # one training may belong to several rows
    rest = sum(c.seconds for c in view.confirmations) + sum(seconds for _, _, seconds in final)
    facts = {
        "model": f"{settings.model.kind.value}, over {settings.backbone.name}",
        "data": str(view.dataset.get("name", settings.data.source)),
        "layouts in the space": f"{space.size:,} ({space.layers} layers of {len(space.sites)} sites, {len(space.free)} free)",
        "evaluations": f"{len(view.completed)} of {settings.search.budget}{_stopped(view)}",
        "trials": _states(view) or "none",
        "training": f"{clock(trained)} in trials, {clock(rest)} after them",
        **({"warm start": warm_start(view.prior)} if view.prior else {}),
        "phase": view.phase,
        "begun": view.created.strftime(WHEN),
        "read": view.read.strftime(WHEN),
    }
    return Table("The study at a glance", ("", ""), tuple(facts.items()))


def _stopped(view: StudyView) -> str:
    """Why a search stopped before spending its budget."""
    if view.phase == SEARCH or len(view.completed) >= min(view.settings.search.budget, view.space.size):
        return ""
    return "; no layout was likely to be worth more" if view.settings.search.stop_when_flat else ""


def confirmation_table(view: StudyView) -> Table:
    """Standings with both intervals of the gain."""
    rows = [
        (
            written(s.layout),
            s.role,
            str(s.seeds),
            symmetric(s.score),
            "" if s.gain is None else symmetric(s.gain, "+"),
            "" if s.simultaneous_interval is None else symmetric(s.simultaneous_interval, "+"),
        )
        for s in view.standings
    ]
    gain = "gain over all-serial"
    headings = ("layout", "role", "seeds", f"validation {view.metric}", gain, f"{gain}, simultaneous")
    intervals = "95% t intervals; " if any(s.seeds > 1 for s in view.standings) else ""
    return Table(f"Confirmation with fresh seeds ({intervals}gains paired by seed)", headings, tuple(rows))


def results_table(view: StudyView) -> Table:
    """The results table: every metric of every row, and the winner's lead."""
    rows = [
        (
            result.name,
            "" if result.layout is None else written(view.space.parse(result.layout)),
            result.metric,
            spread(result),
            "" if result.low is None else f"[{result.low:.4f}, {result.high:.4f}]",
            str(result.seeds),
            lead_text(result),
            p_text(result),
        )
        for result in view.results
    ]
    headings = ("row", "layout", "metric", "mean ± sd", "95% interval", "seeds", "winner's lead", CORRECTED_P)
    known = {
        "mean ± sd over seeds": any(result.sd is not None for result in view.results),
        "95% intervals over users": any(result.low is not None for result in view.results),
        "the winner's lead with its 95% interval": any(result.lead is not None for result in view.results),
    }
    legend = ", ".join(words for words, here in known.items() if here)
    return Table(f"Test split, evaluated once{': ' if legend else ''}{legend}", headings, tuple(rows))


def trainings_table(view: StudyView) -> Table:
    """Every training behind the results table."""
    metrics = list(dict.fromkeys(metric for training in view.final_trainings for metric in training.metrics))
    rows = [
        (
            t.name,
            str(t.seed),
            *(f"{t.metrics[metric]:.4f}" if metric in t.metrics else "" for metric in metrics),
            f"{t.parameters:,}",
            f"{t.seconds:.1f}",
            f"{t.peak_memory / MIB:,.0f}",
        )
        for t in view.final_trainings
    ]
    headings = ("row", "seed", *metrics, "parameters", "seconds", "peak MiB")
    return Table("Final trainings on all users", headings, tuple(rows))


def later_table(view: StudyView) -> Table:
    """Times of each training after the search; trainings side by side have the time of their batch."""
    rows = [
        (
            t.phase,
            f"{t.place} of {t.total}",
            t.label,
            written(t.layout),
            t.began.strftime(WHEN),
            "runs" if t.ended is None else f"{(t.ended - t.began).total_seconds():.1f}",
            note(t.reason, t.workers),
        )
        for t in view.later_trainings
    ]
    headings = ("phase", "place", "training", "layout", "began", "seconds", "note")
    return Table("Trainings after the search", headings, tuple(rows))


def artifacts_table(view: StudyView) -> Table:
    """The files that a study saved, with their hashes."""
    rows = tuple((a.kind, a.path, a.sha256) for a in view.artifacts)
    return Table("Saved files", ("kind", "path", "sha256"), rows)


def effects_table(view: StudyView) -> Table:
    """Posterior main effects as a table."""
    effects = () if view.learned is None else view.learned.main
    rows = tuple((e.sites[0], e.choices[0].name, e.first[0].name, f"{e.mean:+.5f}", f"{e.sd:.5f}") for e in effects)
    return Table(f"Posterior effects on {view.metric}", ("site", "choice", "instead of", "mean", "sd"), rows)


def settings_table(view: StudyView) -> Table:
    """The posterior of the best layout under each value of the settings searched besides it."""
    values = () if view.learned is None else view.learned.settings
    rows = tuple(
        (
            one.key,
            number(one.value),
            f"{one.predicted.mean:.4f}",
            f"{one.predicted.sd:.4f}",
            "found" if one.found else "",
        )
        for one in values
    )
    headings = ("setting", "value", f"predicted {view.metric}", "sd", "")
    return Table("Settings searched besides the layout", headings, rows)


def trials_table(view: StudyView) -> Table:
    """Every trial with its outcome."""
    rows = [
        (
            str(t.number),
            " ".join(
                part for part in ("" if t.layout is None else written(t.layout), settings_text(t.settings)) if part
            ),
            t.state.word,
            "" if t.score is None else f"{t.score:.4f}",
            "" if t.seconds is None else f"{t.seconds:.1f}",
            "" if t.parameters is None else f"{t.parameters:,}",
            "" if t.peak_memory is None else f"{t.peak_memory / MIB:,.0f}",
            "; ".join(part for part in (_repeats(t.retry_of), note(t.reason, t.workers)) if part),
        )
        for t in view.trials
    ]
    headings = ("trial", "layout", "state", view.metric, "seconds", "parameters", "peak MiB", "note")
    return Table("Every trial", headings, tuple(rows))


def _repeats(number: int | None) -> str:
    return "" if number is None else f"repeats trial {number}"


def data_table(view: StudyView) -> Table:
    """The statistics of the data, recorded when the study began."""
    counts = view.dataset.get("statistics", {})
    facts = {name: value for name, value in view.dataset.items() if name != "statistics"} | counts
    rows = tuple((name.replace("_", " "), shown(value)) for name, value in facts.items())
    return Table("The data as recorded when the study began", ("", ""), rows)


def _data_sentences(view: StudyView) -> list[str]:
    if "statistics" in view.dataset:
        return []
    source = shlex.quote(view.settings.data.source)
    return [f"This study recorded only its data's name and fingerprint; dasearch data stats {source} counts them."]


def _result_sentences(view: StudyView) -> list[str]:
    sentences = [] if view.standings else ["Nothing is confirmed with fresh seeds yet."]
    if not view.results:
        return [*sentences, "The test split has not been read."]
    own = [result for result in view.results if result.name == WINNER]
    scores = ", ".join(f"{r.metric} {r.value:.4f}" for r in own)
    return [*sentences, f"On the test split the winner has {scores}."] if own else sentences


def space_table(view: StudyView) -> Table:
    """The search space, one row per setting."""
    rows = tuple((name.replace("_", " "), shown(value)) for name, value in flattened(view.space.record()).items())
    return Table(f"The search space, hash {view.space.hash}", ("", ""), rows)


def versions_table(view: StudyView) -> Table:
    """Package versions when the study began."""
    return Table("Versions the study began with", ("package", "version"), tuple(view.versions.items()))


def commands(view: StudyView) -> list[str]:
    """The command lines that reproduce this study and this report."""
    file = shlex.quote(f"{view.name}.yaml")
    return [
        f"dasearch run {file} --budget {view.settings.search.budget}",
        f"dasearch report {shlex.quote(view.name)} --output {shlex.quote(view.settings.output)}",
    ]


def shown(value: Any) -> str:
    """A recorded value as text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)

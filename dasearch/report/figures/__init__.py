"""Figures of a study: each a pure function of a `StudyView` and a `Theme`.

A figure without data yet shows one sentence. `FIGURES` lists them in the order of a report.
"""

from collections.abc import Callable
from typing import NamedTuple

import plotly.graph_objects as go

from dasearch.report.figures.front import front
from dasearch.report.figures.layouts import best_against_serial, best_layout, hamming_map, layout_difference
from dasearch.report.figures.results import results
from dasearch.report.figures.scores import best_so_far, confirmation, learning_curves, score_against_cost
from dasearch.report.figures.search import calibration, probabilities_over_trials, timeline
from dasearch.report.figures.settings import settings
from dasearch.report.figures.structure import main_effects, pair_interactions
from dasearch.report.theme import Theme
from dasearch.report.view import StudyView


class Drawing(NamedTuple):
    """A figure with its title; ``shows`` explains how to read it."""

    title: str
    shows: str
    draw: Callable[[StudyView, Theme], go.Figure]


FIGURES: dict[str, Drawing] = {
    "results": Drawing(
        "The test result",
        "Means over seeds on the test split, evaluated once, with 95% intervals over users where there are any; the star "
        "is the winner, circles are the other layouts, diamonds variations and ID models.",
        results,
    ),
    "layout": Drawing(
        "The best layout",
        "A letter and a colour per choice: S serial, P parallel, N none, A parallel-sum, L lora, others as the space defines; "
        "the paler a cell, the fewer of the top layouts agree with it.",
        best_layout,
    ),
    "best-so-far": Drawing(
        "Best so far, against the controls",
        "Every evaluation and the best until then; lines are confirmed controls, the band the noise of one training "
        "(sd over fresh seeds).",
        best_so_far,
    ),
    "front": Drawing(
        "The front: score against cost",
        "Circles are single trainings, diamonds confirmed layouts with 95% t intervals over fresh seeds, the star is the picked "
        "one; the dotted stairs are the confirmed front, which nothing confirmed dominates.",
        front,
    ),
    "confirmation": Drawing(
        "Confirmation with fresh seeds",
        "Means with 95% t intervals; small marks are the single trainings. Nothing here was used to choose.",
        confirmation,
    ),
    "difference": Drawing(
        "All-serial against the best other layout",
        "Cells with an arrow differ; letters and colours as above.",
        best_against_serial,
    ),
    "main-effects": Drawing(
        "Effect of each choice by layer",
        "The surrogate's mean effect of a choice instead of its site's first, ± one posterior sd; above zero favours it. Of two "
        "choices a point has the better one's colour, of more its own and its letter.",
        main_effects,
    ),
    "pairs": Drawing(
        "Strongest interactions",
        "How much the effect of a choice at one site changes with another's at a second one, ± one posterior sd.",
        pair_interactions,
    ),
    "settings": Drawing(
        "Settings searched besides the layout",
        "What the surrogate predicts of the best layout under each value of one setting, the others as found, ± one posterior "
        "sd; the star is the value that was found.",
        settings,
    ),
    "hamming": Drawing(
        "Map of the evaluated layouts",
        "Near points are layouts that differ at few sites (classical scaling of Hamming distances); the axes have no unit.",
        hamming_map,
    ),
    "curves": Drawing(
        "Learning curves",
        "The validation score after each epoch of each trial; a trial that ended early is marked.",
        learning_curves,
    ),
    "probabilities": Drawing(
        "Probabilistic reparameterization over the search",
        "The probability of each choice but its site's first (blue 0, orange 1) where the climb of the acquisition function "
        "ended. A rarer sample, or single changes after the climb, may have given the layout; startup trials have none.",
        probabilities_over_trials,
    ),
    "calibration": Drawing(
        "Was the surrogate calibrated?",
        "The prediction before each trial, with its 95% interval, against the outcome; the diagonal is perfect.",
        calibration,
    ),
    "cost": Drawing(
        "Score against cost", "Each evaluation by its seconds and by its trained parameters.", score_against_cost
    ),
    "timeline": Drawing(
        "Timeline",
        "When each training ran, hatched after the search; a lane holds consecutive trainings. Where several "
        "workers trained, each has its own lanes, and retried trainings (↻) are in those of the last attempt.",
        timeline,
    ),
}

__all__ = [
    "FIGURES",
    "Drawing",
    "best_against_serial",
    "best_layout",
    "best_so_far",
    "calibration",
    "confirmation",
    "front",
    "hamming_map",
    "layout_difference",
    "learning_curves",
    "main_effects",
    "pair_interactions",
    "probabilities_over_trials",
    "results",
    "score_against_cost",
    "settings",
    "timeline",
]

"""Bayesian-optimization search for adapter layouts of LLM-based sequential recommenders.

``Study.load("quickstart").run(budget=30)`` searches, confirms and trains; ``load(folder).recommend([...], k=10)`` answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dasearch import threads  # sets the wait policy, before anything here imports torch
from dasearch.lazy import lazily
from dasearch.version import __version__

if TYPE_CHECKING:
    from dasearch.layout import CHOICES, Choice, Join, Layout
    from dasearch.layout_file import read_layout
    from dasearch.models.insertion import apply_layout
    from dasearch.search.study import Study
    from dasearch.training.recommender import load

__all__ = [
    "CHOICES",
    "Choice",
    "Join",
    "Layout",
    "Study",
    "__version__",
    "apply_layout",
    "load",
    "read_layout",
    "threads",
]

_HOMES = {
    "CHOICES": "dasearch.layout",
    "Choice": "dasearch.layout",
    "Join": "dasearch.layout",
    "Layout": "dasearch.layout",
    "Study": "dasearch.search.study",
    "apply_layout": "dasearch.models.insertion",
    "load": "dasearch.training.recommender",
    "read_layout": "dasearch.layout_file",
}

__getattr__, __dir__ = lazily(__name__, _HOMES, __all__)

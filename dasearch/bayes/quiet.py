"""Optuna without its remarks to whoever reads the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning

OWN_LOOP = "Heartbeat of storage is supposed to be used"  # of `Study.ask` where a storage has heartbeats


@contextmanager
def quietly() -> Iterator[None]:
    """For the block, Optuna says nothing of experimental parts, of an own ask/tell loop, or below a warning.

    The filters and the level of before come back; whatever else warns is heard.

    Examples:
        >>> import optuna
        >>> from dasearch.bayes import quietly
        >>> with quietly():
        ...     study = optuna.create_study(direction="maximize")  # would log a line
    """
    level = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        warnings.filterwarnings("ignore", message=OWN_LOOP)
        optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
        try:
            yield
        finally:
            optuna.logging.set_verbosity(level)

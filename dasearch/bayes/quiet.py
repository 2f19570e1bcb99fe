"""Optuna without its warnings and log lines about experimental features."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning

OWN_LOOP = "Heartbeat of storage is supposed to be used"  # of `Study.ask` where a storage has heartbeats


@contextmanager
def quietly() -> Iterator[None]:
    """Silence Optuna's experimental warnings, its ask-and-tell heartbeat warning, and logs below warning level, for the block.

    The previous filters and log level are restored afterwards; all other warnings pass through.

    Examples:
        >>> import optuna
        >>> from dasearch.bayes import quietly
        >>> with quietly():
        ...     study = optuna.create_study(direction="maximize")  # would log a line
    """
    with warnings.catch_warnings(), warnings_only():
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        warnings.filterwarnings("ignore", message=OWN_LOOP)
        yield


@contextmanager
def warnings_only() -> Iterator[None]:
    """Silence Optuna's logs below warning level for the block; the previous level is restored afterwards."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)

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
    level = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        warnings.filterwarnings("ignore", message=OWN_LOOP)
        optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
        try:
            yield
        finally:
            optuna.logging.set_verbosity(level)

"""Selects the executor of a study."""

from __future__ import annotations

import shutil

from dasearch.config import StudySettings, resolve_output
from dasearch.search.events import Listener
from dasearch.search.executors.base import Executor, Workers
from dasearch.search.executors.inline import Inline
from dasearch.search.executors.places import BUNDLES
from dasearch.search.executors.ray import RayExecutor
from dasearch.search.executors.slurm import SlurmExecutor, end_left_over


def executor_of(settings: StudySettings, workers: Workers | None, listener: Listener) -> Executor:
    """Start the executor; jobs and files that a killed driver of the study left are ended and removed first.

    Args:
        settings: of a study that no other process runs.
        workers: None: in this process.
        listener: receives the events of starting.
    """
    output = resolve_output(settings)
    end_left_over(output)
    shutil.rmtree(output / BUNDLES, ignore_errors=True)
    if workers is None:
        return Inline()
    listener.says("starting the workers")
    kind = RayExecutor if workers.slurm is None else SlurmExecutor
    return kind(settings, workers, output)

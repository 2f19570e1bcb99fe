"""Executors of trainings: the study's own process, Ray workers, or SLURM jobs. They take jobs and return events."""

from dasearch.search.executors.base import Event, Executor, Job, Kind, Workers
from dasearch.search.executors.inline import Inline

__all__ = ["Event", "Executor", "Inline", "Job", "Kind", "Workers"]

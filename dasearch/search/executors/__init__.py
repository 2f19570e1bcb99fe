"""Where the trainings of a study run: in its own process, in workers on Ray, or in jobs of SLURM. Jobs go in, events come out."""

from dasearch.search.executors.base import Event, Executor, Job, Kind, Workers
from dasearch.search.executors.inline import Inline

__all__ = ["Event", "Executor", "Inline", "Job", "Kind", "Workers"]

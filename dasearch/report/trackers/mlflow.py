"""One MLflow experiment per study: ``mlflow ui --backend-store-uri sqlite:///runs/NAME/mlflow.db``.

Everything stays in the study's folder unless ``MLFLOW_TRACKING_URI`` names a server. Each `dasearch run` is a
separate run with its trainings nested in it; a resumed study has several, whose curves continue each other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import; dasearch works offline
os.environ.setdefault(
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"
)  # MLflow's seven retries would block a training for minutes

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from dasearch.config import StudySettings, resolve_output
from dasearch.report.tracking import STUDY, markdown
from dasearch.search.store import database_url

URI = "MLFLOW_TRACKING_URI"
BATCH = 100  # parameters per request of MLflow


class MLflow:
    """A `Tracker` that writes to an MLflow store."""

    def __init__(self, settings: StudySettings) -> None:
        self.study, self.folder = settings.name, resolve_output(settings).absolute()
        self._runs: dict[str, str] = {}

    @cached_property
    def _client(self) -> MlflowClient:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)  # its messages would disturb the live terminal
        return MlflowClient(os.environ.get(URI) or database_url(self.folder / "mlflow.db"))

    @cached_property
    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self.study)
        if experiment is not None:
            return str(experiment.experiment_id)
        here = (
            None if os.environ.get(URI) else (self.folder / "mlflow").as_uri()
        )  # a server has its own artifact location
        return str(self._client.create_experiment(self.study, artifact_location=here))

    def begin(self, run: str, facts: Mapping[str, str]) -> None:
        """Start a run with its settings."""
        tags = {} if run == STUDY else {MLFLOW_PARENT_RUN_ID: self._runs[STUDY]}
        name = self.study if run == STUDY else run
        key = self._runs[run] = self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
        params = [Param(name, value) for name, value in facts.items()]
        for start in range(0, len(params), BATCH):
            self._client.log_batch(key, params=params[start : start + BATCH])

    def log(self, run: str, numbers: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        now = get_current_time_millis()
        metrics = [Metric(allowed(name), value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._runs[run], metrics=metrics)

    def table(self, run: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a table."""
        self._client.log_text(self._runs[run], markdown(columns, rows), f"{name}.md")

    def end(self, run: str, *, failed: bool) -> None:
        """Finish the run, or mark it as failed."""
        self._client.set_terminated(self._runs.pop(run), "FAILED" if failed else "FINISHED")

    def close(self) -> None:
        """Finish the study's run, and mark open ones as interrupted."""
        for run, key in self._runs.items():
            self._client.set_terminated(key, "FINISHED" if run == STUDY else "KILLED")
        self._runs.clear()


def allowed(name: str) -> str:
    """A metric's name without @, which MLflow does not allow."""
    return name.replace("@", "_at_")

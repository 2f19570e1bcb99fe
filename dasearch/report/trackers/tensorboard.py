"""Event files in ``tensorboard/`` of the study's folder: ``tensorboard --logdir runs/NAME/tensorboard``.

A run is a folder, so a resumed study continues the same curves. Layouts are under HPARAMS, one column per site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dasearch.config import StudySettings, resolve_output
from dasearch.report.tracking import SCORE, STUDY, markdown


class TensorBoard:
    """A `Tracker` that writes a folder of event files per run."""

    def __init__(self, settings: StudySettings) -> None:
        self.folder = resolve_output(settings) / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}

    def begin(self, run: str, facts: Mapping[str, str]) -> None:
        """Start a run with its settings."""
        writer = self._writers[run] = SummaryWriter(self.folder / run)
        writer.add_text("facts", markdown(("", ""), list(facts.items())))
        if run != STUDY:
            for summary in hparams(dict(facts), {SCORE: 0.0}):  # the value only declares the metric of the HPARAMS page
                writer._get_file_writer().add_summary(summary)

    def log(self, run: str, numbers: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, value in numbers.items():
            self._writers[run].add_scalar(name, value, step)
        self._writers[run].flush()

    def table(self, run: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a table."""
        self._writers[run].add_text(name, markdown(columns, rows))

    def end(self, run: str, *, failed: bool) -> None:
        """Close the run's writer, with a note if it failed."""
        writer = self._writers.pop(run)
        if failed:
            writer.add_text("failed", "The training failed.")
        writer.close()

    def close(self) -> None:
        """Close the writers of open runs."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

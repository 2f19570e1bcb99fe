"""Trains one layout as `dasearch train` does and records the reported epochs: a single process, or a rank of torchrun.

``python -m tests.training.rank_worker STUDY OUT HEARD [END]``; ``interrupted`` or ``lost`` ends it after the first epoch. Of a
finished training HEARD.RANK.bytes is the size of the frozen layers that this process holds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from dasearch.errors import RankError
from dasearch.search.events import Listener, Training
from dasearch.search.single import train_layout
from dasearch.search.study import Study
from dasearch.training.progress import Epoch
from dasearch.training.ranks import started
from dasearch.training.sharding import held_bytes

LAYOUT = "SPS-PPS"


class Hearing(Listener):
    """Keeps every epoch's losses and metrics; may end its process."""

    def __init__(self, end: str = "") -> None:
        self.end = end
        self.epochs: list[list[dict[str, float]]] = []

    def epoch(self, training: Training, epoch: Epoch) -> None:
        self.epochs.append([epoch.losses, epoch.metrics])
        if self.end == "interrupted":
            raise KeyboardInterrupt
        if self.end == "lost" and not started().first:
            os.kill(os.getpid(), signal.SIGKILL)


def hear(study: Path, out: Path, end: str = "", *, size: Path | None = None) -> list[list[dict[str, float]]]:
    """Train, and give the losses and metrics of every epoch; ``size`` is the file of the frozen layers' bytes."""
    listener = Hearing(end)
    try:
        _, trained = train_layout(Study.load(str(study)), LAYOUT, out=out, listener=listener)
        if size is not None:
            size.write_text(str(held_bytes(trained.model.backbone)))
    except KeyboardInterrupt:
        assert end == "interrupted"
    return listener.epochs


if __name__ == "__main__":
    study, out, heard = map(Path, sys.argv[1:4])
    try:
        found = hear(study, out, *sys.argv[4:], size=heard.with_suffix(f".{started().rank}.bytes"))
    except RankError as error:
        sys.exit(str(error))
    heard.with_suffix(f".{started().rank}.json").write_text(json.dumps(found))

"""Where what a study saved lies, though its output folder may have been moved since, or a command runs elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dasearch.folders import sha256
from dasearch.search.store.records import Artifact


def whereabouts(saved: Artifact, study: str, outputs: Sequence[Path]) -> Path:
    """The place of what a study saved; where there are several, the first that is as it was saved.

    Args:
        saved: its path is relative to the study's output folder. Earlier revisions wrote it as it was reached then,
            which holds still where nothing was moved.
        outputs: folders that may be the study's output folder now, the likeliest first.
    """
    path = Path(saved.path)
    inside = Path(*path.parts[-2:]) if path.parts[-2:-1] == (study,) else path
    places = {place.resolve(): place for place in reversed([*(output / inside for output in outputs), path])}
    there = [place for place in reversed(places.values()) if place.exists()]
    if len(there) > 1:
        there = [place for place in there if sha256(place) == saved.sha256] or there
    return there[0] if there else path if path.is_absolute() or not outputs else outputs[0] / inside

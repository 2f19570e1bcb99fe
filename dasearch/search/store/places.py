"""Locates files that a study saved, even if its output folder was moved, or the working directory differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dasearch.folders import sha256
from dasearch.search.store.records import Artifact


def whereabouts(saved: Artifact, study: str, outputs: Sequence[Path]) -> Path:
    """The path of a saved artifact; of several candidates, the first with unchanged content.

    Args:
        saved: its path is relative to the study's output folder. Earlier revisions stored it relative to the working
            directory, which is still valid where nothing was moved.
        study: its name.
        outputs: candidates for the study's current output folder, the likeliest first.
    """
    path = Path(saved.path)
    inside = Path(*path.parts[-2:]) if path.parts[-2:-1] == (study,) else path
    places = {place.resolve(): place for place in reversed([*(output / inside for output in outputs), path])}
    there = [place for place in reversed(places.values()) if place.exists()]
    if len(there) > 1:
        there = [place for place in there if sha256(place) == saved.sha256] or there
    return there[0] if there else path if path.is_absolute() or not outputs else outputs[0] / inside

"""Locates a trained model: a study's winner, or a folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from dasearch.commands import OUTPUT
from dasearch.errors import ExportError, ModelFolderError, NoStudies
from dasearch.folders import place_of, sha256
from dasearch.search.store import open_store
from dasearch.training.recommender import Recommender, load

MODEL = "model"  # the kind of artifact of a trained model's folder


def open_trained(name: str, *, output: str = OUTPUT, storage: str | None = None, device: str = "cpu") -> Recommender:
    """The recommender that a study trained at its end, by the study's name, or that of a model folder.

    Raises:
        ExportError: if the study has no trained model, or its folder was modified since.
        ModelFolderError: if there is no such study or folder, or it cannot be read.
    """
    folder = place_of(name, ExportError)
    if folder.name == name and not (folder / "config.json").is_file():  # a data folder may have its study's name
        try:
            folder = trained_folder(name, output=output, storage=storage)
        except NoStudies as error:
            raise ModelFolderError(f"{name} holds no trained model (no config.json), and as a study: {error}") from None
    return load(folder, device=device)


def trained_folder(name: str, *, output: str = OUTPUT, storage: str | None = None) -> Path:
    """The folder of a study's winner, checked to be unmodified."""
    with closing(open_store(storage, output, create=False)) as store:
        models = [artifact for artifact in store.artifacts(name) if artifact.kind == MODEL]
    if not models:
        raise ExportError(
            f"study {name} has no trained model yet; run `dasearch run {name}` to its end, or name a folder"
        )
    folder = Path(models[-1].path)
    if not folder.is_dir():
        raise ExportError(f"the model of study {name} is no longer at {folder}; restore it, or name its folder")
    if sha256(folder) != models[-1].sha256:
        raise ExportError(
            f"{folder} was modified since study {name} wrote it; name the folder itself to use it as it is"
        )
    return folder

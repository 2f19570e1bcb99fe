"""A trained recommender as a folder: saving, loading without its study, and recommending items.

The folder contains ``config.json``, ``model.safetensors`` (trained parameters and CF vectors), ``backbone/`` (the frozen
model and its tokenizer), ``catalogue.jsonl``, ``users.json`` and ``layout.json``. Nothing in it is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dasearch.config import StudySettings, parse_study
from dasearch.data import Dataset, IntArray, Item, evaluation_plan
from dasearch.data.rows import NO_ITEM
from dasearch.errors import DasearchError, ModelFolderError, first_line, suggestion_of_id
from dasearch.folders import IfExists, place_of, sha256, written_beside
from dasearch.layout import Layout, Structure
from dasearch.layout_file import LAYOUT_NAME, LayoutFile, Metric, choice_records
from dasearch.models.base import RecommenderModel, Scorer
from dasearch.models.registry import MODELS
from dasearch.training.catalogue_files import (
    CATALOGUE,
    catalogue_dataset,
    read_backbone,
    read_items,
    write_backbone,
    write_items,
)
from dasearch.training.checkpoints import load_tensors, save_tensors
from dasearch.training.evaluation import batch_rows, score_batch
from dasearch.training.loop import Trained
from dasearch.training.materials import StudyContext, build_catalogue, resolve_device
from dasearch.training.preparation import untrained_model
from dasearch.training.seeds import generator_for
from dasearch.training.shared import Catalogue
from dasearch.version import installed_versions

FORMAT = 1
# what reading a folder raises whose files hold something else than was written; pydantic's errors are ValueErrors
DAMAGES = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
NOBODY = -1  # user index of a history from outside the training data


class Recommendation(NamedTuple):
    """An item, its title, and its score (a logit: comparable only within one answer)."""

    item: str
    title: str
    score: float


class Request(NamedTuple):
    """A valid history: item indices ``(n,)``, oldest first; the user's index, -1 for a user outside the training data."""

    history: IntArray
    user: int


class Ranking(NamedTuple):
    """Indices of items, best first, and their scores."""

    items: list[int]
    scores: list[float]


@dataclass
class Recommender:
    """A trained model with its catalogue; `load` opens one."""

    model: RecommenderModel
    layout: Layout
    catalogue: Catalogue
    items: tuple[Item, ...]
    users: dict[str, int]
    settings: StudySettings
    layout_file: LayoutFile
    results: Mapping[str, Mapping[str, float]]  # metrics of the saved model, by split

    def __post_init__(self) -> None:
        self._index = {item.identifier: position for position, item in enumerate(self.items)}

    def __repr__(self) -> str:
        file = self.layout_file
        counts = f"{len(self.items)} items, {len(self.users)} users"
        return f"Recommender({file.model} over {Path(file.backbone).name}, {self.layout!r}: {counts})"

    def recommend(
        self, history: Sequence[str], k: int = 10, *, user: str | None = None, include_seen: bool = False
    ) -> list[Recommendation]:
        """The ``k`` items that most likely come next, by default without those of the history.

        A study's metrics rank all items, including the history's: where users buy the same items repeatedly, as in
        complete-journey, ``include_seen`` gives the ranking that was evaluated.

        Args:
            history: item ids, oldest first; only the newest ``data.max_items`` are used.
            k: number of items.
            user: a user of the training data, whose own collaborative vector is then used; without one, or for a model that reads
                only histories, it is estimated from the history.
            include_seen: also recommend items of the history.

        Raises:
            ModelFolderError: for an empty history, an unknown item or user, or k below 1.
        """
        (ranking,) = self.rankings([self._require(history, user)], k, include_seen=include_seen)
        return self._titled(ranking)

    def recommend_many(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        users: Sequence[str | None] | None = None,
        include_seen: bool = False,
        batch_size: int | None = None,
    ) -> list[list[Recommendation]]:
        """`recommend` for each history, in order, computed in batches of similar length.

        Args:
            histories: item ids of each history, oldest first.
            k: number of items per history.
            users: one per history, None for a user outside the training data.
            include_seen: also recommend items of the history.
            batch_size: histories per forward pass; None: a default for the device.

        Raises:
            ModelFolderError: as `recommend`, naming the history, or if the numbers of users and histories differ.
        """
        whose = [None] * len(histories) if users is None else users
        if len(whose) != len(histories):
            raise ModelFolderError(
                f"{len(whose)} users for {len(histories)} histories; give one for each, None for someone else"
            )
        pairs = enumerate(zip(histories, whose, strict=True))
        requests = [self._require(history, user, f"histories[{n}]: ") for n, (history, user) in pairs]
        rankings = self.rankings(requests, k, include_seen=include_seen, batch_size=batch_size)
        return [self._titled(ranking) for ranking in rankings]

    def request(self, history: Sequence[str], user: str | None = None) -> Request | None:
        """A history as catalogue indices; None if it is invalid, for which `refusal` gives the reason."""
        positions = [self._index.get(item, NO_ITEM) for item in history]
        number = NOBODY if user is None else self.users.get(user)
        if not positions or NO_ITEM in positions or number is None:
            return None
        return Request(np.array(positions, dtype=np.int64), number)

    def refusal(self, history: Sequence[str], user: str | None = None) -> str:
        """The error message of an invalid history, with a suggested fix."""
        if not history:
            return "the history is empty; give at least one item id"
        for item in history:
            if item not in self._index:
                hint = suggestion_of_id(item, self._index) or "; catalogue.jsonl in the model's folder lists them all"
                return f"unknown item {item!r}{hint}"
        return f"unknown user {user!r}{suggestion_of_id(user or '', self.users)}; leave user out to go by the history"

    def _require(self, history: Sequence[str], user: str | None, which: str = "") -> Request:
        request = self.request(history, user)
        if request is None:
            raise ModelFolderError(which + self.refusal(history, user))
        return request

    @torch.inference_mode()
    def rankings(
        self,
        requests: Sequence[Request],
        k: int = 10,
        *,
        include_seen: bool = False,
        batch_size: int | None = None,
    ) -> list[Ranking]:
        """The best ``k`` items of each request, in order; fewer if the history leaves fewer items of the catalogue.

        Raises:
            ModelFolderError: for k or batch_size below 1.
        """
        if k < 1:
            raise ModelFolderError(f"k is {k}; ask for at least 1 item")
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise ModelFolderError(f"batch_size is {size}; answer at least 1 history at a time")
        rankings: dict[int, Ranking] = {}
        users = np.array([request.user for request in requests], dtype=np.int64)
        histories = [request.history for request in requests]
        sentences, row_format = self.catalogue.row_sentences, self.catalogue.row_format
        for places, batch in evaluation_plan(users, histories, None, sentences, row_format).by_length(size):
            for part, scores in score_batch(self.model, batch, self._scorer, self._placed):
                rows = places[part].tolist()
                if not include_seen:
                    _leave_out(scores, [histories[row] for row in rows])
                rankings |= zip(rows, _best(scores, k), strict=True)
        return [rankings[row] for row in range(len(requests))]

    @property
    def batch_size(self) -> int:
        """Default number of histories per forward pass on this device."""
        return batch_rows(self.model.device)

    @cached_property
    def _placed(self) -> Tensor:
        return self.model.layout_tensor(self.layout)

    @cached_property
    def _scorer(self) -> Scorer:
        """The scorer, created on first use and shared by all requests."""
        return self.model.scorer(self.catalogue.item_rows, self._placed)

    def _titled(self, ranking: Ranking) -> list[Recommendation]:
        chosen = ((self.items[position], score) for position, score in zip(*ranking, strict=True))
        return [Recommendation(item.identifier, item.attributes.get("title", ""), score) for item, score in chosen]


def _leave_out(scores: Tensor, histories: Sequence[IntArray]) -> None:
    """Set the scores of each row's history to minus infinity, in place. Shapes: scores ``(rows, items)``."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    scores[torch.from_numpy(rows), torch.from_numpy(np.concatenate(histories))] = -torch.inf


def _best(scores: Tensor, k: int) -> list[Ranking]:
    """The ``k`` highest finite scores of each row of ``(rows, items)``."""
    best = scores.topk(min(k, scores.shape[1]))
    counts = best.values.isfinite().sum(1).tolist()
    triples = zip(best.indices.tolist(), best.values.tolist(), counts, strict=True)
    return [Ranking(items[:count], values[:count]) for items, values, count in triples]


def layout_file(settings: StudySettings, trained: Trained, metric: Metric | None) -> LayoutFile:
    """The ``layout.json`` of a trained layout."""
    model = trained.model
    return layout_file_of(
        settings, trained.layout, layers=len(model.backbone.blocks), replaced=model.replaced, metric=metric
    )


def layout_file_of(
    settings: StudySettings, layout: Layout, *, layers: int, replaced: Sequence[int], metric: Metric | None
) -> LayoutFile:
    """The ``layout.json`` of a study's layout, for a backbone with ``layers`` layers of which ``replaced`` are adapted."""
    spec = MODELS[settings.model.kind]
    return LayoutFile(
        model=settings.model.label,
        backbone=settings.backbone.name,
        layers=layers,
        replaced=[layer + 1 for layer in replaced],
        sites=list(spec.sites),
        layout=str(layout),
        choices=choice_records(*layout.choices),
        encoder=settings.encoder.name if settings.reads_encoder else None,
        parallel_reads=spec.parallel_reads,
        parallel_reduce=settings.model.parallel_reduce.value,
        **settings.model.layout_facts,
        metric=metric,
        study=settings.name,
        seed=settings.seed,
        versions=installed_versions(("dasearch", "torch", "transformers", "botorch", "optuna")),
    )


def save_recommender(
    folder: Path,
    trained: Trained,
    settings: StudySettings,
    materials: StudyContext,
    dataset: Dataset,
    *,
    metric: Metric | None = None,
    results: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the folder atomically (to a temporary folder, then renamed); an existing folder is replaced.

    ``weights`` are the frozen model's, as of `write_backbone`.
    """
    with written_beside(folder, IfExists.REPLACED) as unfinished:
        _write(unfinished, trained, settings, materials, dataset, metric, results or {})
        write_backbone(unfinished, materials.catalogue.backbone, materials.catalogue.tokenizer, weights)
    return folder


def _write(
    folder: Path,
    trained: Trained,
    settings: StudySettings,
    materials: StudyContext,
    dataset: Dataset,
    metric: Metric | None,
    results: Mapping[str, Any],
) -> None:
    model = trained.model
    development = materials.development
    users = torch.as_tensor(development.users, device=model.device)
    model.fit_cold_start(users, [torch.as_tensor(s, device=model.device) for s in development.train])
    record = {"format": FORMAT, "layout": str(trained.layout)}
    save_tensors(folder / "model.safetensors", model.active_tensors(trained.layout), record)
    write_items(folder, dataset.items)
    (folder / "users.json").write_text(json.dumps(list(dataset.users)), encoding="utf-8")
    (folder / LAYOUT_NAME).write_text(layout_file(settings, trained, metric).text(), encoding="utf-8")
    config = {
        "format": FORMAT,
        "study": settings.model_dump(mode="json"),
        "replaced": [layer + 1 for layer in model.replaced],
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "catalogue": sha256(folder / CATALOGUE),
        "results": dict(results),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(directory: str | Path, *, device: str = "auto") -> Recommender:
    """Open the folder of a trained model.

    Raises:
        ModelFolderError: if a file is missing, damaged, or of a newer format.

    Examples:
        >>> import dasearch
        >>> dasearch.load("nosuch")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        dasearch.errors.ModelFolderError: nosuch holds no trained model (no config.json); give the folder that ...
    """
    folder = place_of(directory, ModelFolderError)
    if not (folder / "config.json").is_file():
        raise ModelFolderError(
            f"{folder} holds no trained model (no config.json); give the folder that `dasearch run` printed"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ModelFolderError(
                f"{folder} has format {config['format']!r:.40} and this dasearch reads {FORMAT}; update dasearch"
            )
        return _open(folder, config, device)
    except DasearchError:
        raise
    except DAMAGES as error:
        raise ModelFolderError(
            f"{folder} is incomplete or damaged ({first_line(error)}); train or copy it again"
        ) from None


def _open(folder: Path, config: Mapping[str, Any], device: str) -> Recommender:
    settings = parse_study(config["study"], source=str(folder / "config.json"))
    if config.get("catalogue") not in (
        None,
        sha256(folder / CATALOGUE),
    ):  # None: saved by a version that did not record it
        raise ModelFolderError(f"{folder / CATALOGUE} is not the catalogue that the model was trained on; restore it")
    items = read_items(folder)
    users = {user: index for index, user in enumerate(json.loads((folder / "users.json").read_text(encoding="utf-8")))}
    backbone, tokenizer = read_backbone(folder, settings.backbone.name, settings.model.attn_scale)
    catalogue = build_catalogue(settings, catalogue_dataset(config["dataset"]["name"], items), backbone, tokenizer)
    file = LayoutFile.read(folder)
    layout = file.parsed()
    recommender = untrained_model(
        settings,
        backbone,
        Structure(config["replaced"][0], layout.has_lora),
        n_users=len(users),
        n_items=len(items),
        generator=generator_for("loading"),
    )
    tensors, record = load_tensors(folder / "model.safetensors")
    if file.layout != record["layout"]:
        raise ModelFolderError(
            f"{folder / LAYOUT_NAME} has the layout {layout} and the weights were trained with {record['layout']}; "
            "restore the file"
        )
    recommender.load_active(tensors, layout)
    recommender.to(resolve_device(device)).eval()
    return Recommender(recommender, layout, catalogue, items, users, settings, file, config["results"])

"""A trained recommender as a folder: saved, loaded without its study, asked for items.

The folder holds ``config.json``, ``model.safetensors`` (trained parameters and CF vectors), ``backbone/`` (the frozen
model and its tokenizer), ``catalogue.jsonl``, ``users.json`` and ``layout.json``. Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from dasearch.config import StudySettings, parse_study
from dasearch.data import Dataset, Item, evaluation_batches, last_positions
from dasearch.errors import DasearchError, ModelFolderError
from dasearch.layout import Layout, LayoutFile, Metric
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.darec import SITES, DARec, gather_tokens
from dasearch.search_space import suggestion
from dasearch.training.checkpoints import load_tensors, save_tensors
from dasearch.training.loop import Trained
from dasearch.training.materials import Catalogue, Materials, build_catalogue, resolve_device
from dasearch.training.seeds import generator_for

FORMAT = 1
RIDGE = 1e-3  # of the fold-in regression, relative to the mean square of its inputs


class Recommendation(NamedTuple):
    """An item, its title, and its score (a logit: comparable within one answer only)."""

    item: str
    title: str
    score: float


@dataclass
class Recommender:
    """A trained DARec with its catalogue; `load` opens one."""

    model: DARec
    layout: Layout
    catalogue: Catalogue
    items: tuple[Item, ...]
    users: dict[str, int]
    fold_in: Tensor | None  # (cf width + 1, cf width): user vector from the mean of the history's item vectors
    settings: StudySettings
    layout_file: LayoutFile

    def __post_init__(self) -> None:
        self._index = {item.identifier: position for position, item in enumerate(self.items)}

    def recommend(
        self, history: Sequence[str], k: int = 10, *, user: str | None = None, exclude_seen: bool = False
    ) -> list[Recommendation]:
        """The ``k`` items most likely to come next.

        Args:
            history: item ids, oldest first; the newest ``data.max_items`` count.
            user: a user of the training data, whose own collaborative vector is then used; without one it is
                estimated from the history.
            exclude_seen: leave out items of the history.

        Raises:
            ModelFolderError: for an empty history, an unknown item or user, or k below 1.
        """
        positions = self._positions(history, k, user)
        scores = self._scores(positions, user).clone()
        if exclude_seen:
            scores[torch.as_tensor(positions)] = -torch.inf
        best = scores.topk(min(k, int(scores.isfinite().sum())))
        return [
            Recommendation(self.items[i].identifier, self.items[i].attributes.get("title", ""), float(score))
            for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _positions(self, history: Sequence[str], k: int, user: str | None) -> list[int]:
        if not history:
            raise ModelFolderError("the history is empty; give at least one item id")
        if k < 1:
            raise ModelFolderError(f"k is {k}; ask for at least 1 item")
        unknown = [item for item in history if item not in self._index]
        if unknown:
            hint = suggestion(unknown[0], list(self._index)) or "; catalogue.jsonl in the model's folder lists them all"
            raise ModelFolderError(f"unknown item {unknown[0]!r}{hint}")
        if user is not None and user not in self.users:
            raise ModelFolderError(
                f"unknown user {user!r}{suggestion(user, list(self.users))}; leave user out to go by the history"
            )
        return [self._index[item] for item in history]

    @torch.inference_mode()
    def _scores(self, positions: list[int], user: str | None) -> Tensor:
        """Scores of all items, ``(items,)``."""
        device = self.model.head.weight.device
        history = np.array(positions, dtype=np.int64)
        (batch,) = evaluation_batches(
            np.zeros(1, dtype=np.int64),
            [history],
            None,
            self.catalogue.sentences,
            self.catalogue.row_format,
            batch_size=1,
        )
        ends = batch.ends.gather(1, last_positions(batch)[:, None]).to(device)
        moved = batch.to(device)
        hidden = self.model.hidden(moved.rows, self.model.layout_tensor(self.layout), self._user_key(positions, user))
        return self.model.logits(gather_tokens(hidden, ends)).flatten().float().cpu()

    def _user_key(self, positions: list[int], user: str | None) -> Tensor | None:
        if self.model.cf is None or self.fold_in is None:
            return None
        device = self.model.head.weight.device
        if user is not None:
            return self.model.user_keys(torch.tensor([self.users[user]], device=device))
        items = self.model.cf.item_vectors(torch.tensor(positions, device=device)).mean(0)
        estimated = torch.cat([items, items.new_ones(1)]) @ self.fold_in.to(device)
        return self.model.project_users(estimated[None])


@torch.no_grad()
def fold_in_matrix(model: DARec, materials: Materials) -> Tensor | None:
    """Ridge regression of users' CF vectors on the means of their training items' vectors: ``(width + 1, width)``.

    It gives a user outside the training data a vector of the same kind.
    """
    if model.cf is None:
        return None
    device = model.head.weight.device
    development = materials.development
    means = torch.stack([model.cf.item_vectors(torch.as_tensor(s, device=device)).mean(0) for s in development.train])
    known = torch.cat([means, means.new_ones(len(means), 1)], dim=1).double()
    wanted = model.cf.user_vectors(torch.as_tensor(development.users, device=device)).double()
    gram = known.T @ known
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=device)
    solved: Tensor = torch.linalg.solve(gram + penalty, known.T @ wanted)
    return solved.float().cpu()


def layout_file(settings: StudySettings, trained: Trained, metric: Metric | None) -> LayoutFile:
    """What ``layout.json`` says of a trained layout."""
    return LayoutFile(
        model=settings.model.variation.value,
        backbone=settings.backbone.name,
        layers=len(trained.model.backbone.blocks),
        replaced=[layer + 1 for layer in trained.model.replaced],
        sites=list(SITES),
        layout=str(trained.layout),
        bottleneck=settings.model.bottleneck,
        activation=settings.model.activation.value,
        metric=metric,
        study=settings.name,
        seed=settings.seed,
        versions={name: version(name) for name in ("dasearch", "torch", "transformers", "botorch", "optuna")},
    )


def save_recommender(
    folder: Path,
    trained: Trained,
    settings: StudySettings,
    materials: Materials,
    dataset: Dataset,
    *,
    metric: Metric | None = None,
    results: Mapping[str, Any] | None = None,
) -> Path:
    """Write the folder beside its place and rename it there; one of the same name is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        _write(unfinished, trained, settings, materials, dataset, metric, results or {})
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(
    folder: Path,
    trained: Trained,
    settings: StudySettings,
    materials: Materials,
    dataset: Dataset,
    metric: Metric | None,
    results: Mapping[str, Any],
) -> None:
    model, catalogue = trained.model, materials.catalogue
    names = {name for name, _ in model.trainable()} | {n for n, _ in model.named_parameters() if n.startswith("cf.")}
    tensors = {name: parameter for name, parameter in model.named_parameters() if name in names}
    fold_in = fold_in_matrix(model, materials)
    save_tensors(
        folder / "model.safetensors",
        {**tensors, **({} if fold_in is None else {"fold_in": fold_in})},
        {"format": FORMAT, "layout": str(trained.layout)},
    )
    catalogue.backbone.model.save_pretrained(folder / "backbone")
    catalogue.tokenizer.save_pretrained(folder / "backbone")
    lines = [
        json.dumps({"item_id": i.identifier, "attributes": dict(i.attributes)}, ensure_ascii=False)
        for i in dataset.items
    ]
    (folder / "catalogue.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "users.json").write_text(json.dumps(list(dataset.users)), encoding="utf-8")
    (folder / "layout.json").write_text(
        layout_file(settings, trained, metric).model_dump_json(indent=2) + "\n", encoding="utf-8"
    )
    config = {
        "format": FORMAT,
        "study": settings.model_dump(mode="json"),
        "replaced": [layer + 1 for layer in model.replaced],
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "results": dict(results),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(directory: str | Path, *, device: str = "auto") -> Recommender:
    """Open a folder that a study trained.

    Raises:
        ModelFolderError: if a file is missing, damaged, or of a newer format.
    """
    folder = Path(directory)
    if not (folder / "config.json").is_file():
        raise ModelFolderError(
            f"{folder} holds no trained model (no config.json); give the folder that `dasearch run` printed"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ModelFolderError(
                f"{folder} has format {config['format']} and this dasearch reads {FORMAT}; update dasearch"
            )
        return _open(folder, config, device)
    except DasearchError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFolderError(f"{folder} is incomplete or damaged ({reason}); train or copy it again") from None


def _open(folder: Path, config: Mapping[str, Any], device: str) -> Recommender:
    settings = parse_study(config["study"], source=str(folder / "config.json"))
    lines = (folder / "catalogue.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    items = tuple(Item(record["item_id"], record["attributes"]) for record in records)
    users = {user: index for index, user in enumerate(json.loads((folder / "users.json").read_text(encoding="utf-8")))}
    model = AutoModel.from_pretrained(folder / "backbone", use_safetensors=True)
    backbone = FrozenBackbone(model, name=settings.backbone.name, scale=settings.model.attn_scale)
    tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
    catalogue = build_catalogue(settings, catalogue_dataset(config["dataset"]["name"], items), backbone, tokenizer)
    recommender = DARec(
        backbone,
        settings.model,
        n_users=len(users),
        n_items=len(items),
        replace_every=config["replaced"][0],
        generator=generator_for("loading"),
    )
    tensors, record = load_tensors(folder / "model.safetensors")
    fold_in = tensors.pop("fold_in", None)
    _load_parameters(recommender, tensors)
    file = LayoutFile.model_validate_json((folder / "layout.json").read_text(encoding="utf-8"))
    recommender.to(resolve_device(device)).eval()
    layout = Layout.parse(record["layout"])
    return Recommender(recommender, layout, catalogue, items, users, fold_in, settings, file)


@torch.no_grad()
def _load_parameters(model: DARec, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    wanted = {name for name in parameters if not name.startswith("backbone.") and ".block." not in name}
    if wanted != set(tensors):
        raise ValueError(f"model.safetensors lacks or adds {sorted(wanted ^ set(tensors))[0]}")
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def catalogue_dataset(name: str, items: tuple[Item, ...]) -> Dataset:
    """A data set of items alone."""
    return Dataset(name=name, users=(), items=items, sequences=(), timestamps=())


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file, or of a folder's files in order of name."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode() if path.is_dir() else b"")
            digest.update(file.read_bytes())
    return digest.hexdigest()

"""What the training loop asks of each model: how to build it, what it trains on, which losses, which baselines."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from dasearch.config import StudySettings
from dasearch.data import Examples, IntArray, RowFormat, RowPlan, SequenceBatch
from dasearch.data.rows import moved
from dasearch.models.base import RecommenderModel
from dasearch.models.id_encoders import ENCODERS, IDEncoder
from dasearch.models.registry import MODELS
from dasearch.training.checkpoints import prefixed, under
from dasearch.training.encoders import encoder_ranks
from dasearch.training.shared import Say, SharedInputs

SHARED_READS = ("seed", "device", "data", "backbone", "examples", "model.kind", "model.attn_scale")


@dataclass(frozen=True)
class Drawn:
    """Tensors that a batch's losses read beside it; the first axis counts candidates.

    Attributes:
        fills: what pads a tensor, by its name, where candidates have more or fewer; 0 for the others.
    """

    fills: ClassVar[dict[str, int]] = {}

    def to(self, device: torch.device) -> Self:
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return type(self)(**{n: part if part is None else moved(part, device) for n, part in parts.items()})

    @classmethod
    def together(cls, drawn: Sequence[Drawn]) -> Self:
        """Those of several candidates, one after another, padded alike by what counts for nothing."""
        if len(drawn) == 1:
            return drawn[0]  # type: ignore[return-value]
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: _padded([getattr(one, name) for one in drawn], cls.fills.get(name, 0)) for name in names})


def kept(shape: tuple[int, ...], dropout: float, generator: torch.Generator) -> Tensor:
    """Dropout drawn beforehand: zeros, and one over the share that is kept elsewhere."""
    return (torch.rand(shape, generator=generator) >= dropout) / (1 - dropout)


def widened(tensor: Tensor, axis: int, size: int, fill: int) -> Tensor:
    """Padded at the end of one axis, up to a size."""
    room = [0, 0] * (tensor.dim() - 1 - axis) + [0, max(0, size - tensor.shape[axis])]
    return F.pad(tensor, room, value=fill)


def _padded(parts: Sequence[Tensor | None], fill: int) -> Tensor | None:
    """Along the first axis, every other axis padded at its end to the longest; None where none is there."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    nothing = known[0].new_empty((1, 0, *known[0].shape[2:]))  # of a candidate that has none where others do
    found = [nothing if part is None else part for part in parts]
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in found), strict=True)]
    padded = []
    for part in found:
        room = [size - own for size, own in zip(longest, part.shape[1:], strict=True)]
        padded.append(F.pad(part, [end for size in reversed(room) for end in (0, size)], value=fill))
    return torch.cat(padded)


@dataclass(frozen=True)
class TrainingTask(ABC):
    """One of the models with all that a study prepared for it; no layout, recipe or seed changes it.

    Attributes:
        encoder: the trained ID encoder, where the model reads one.
    """

    settings: StudySettings
    encoder: IDEncoder | None
    reads: ClassVar[tuple[str, ...]]  # the settings that preparation reads, sections or keys

    @classmethod
    @abstractmethod
    def prepare(cls, settings: Any, materials: SharedInputs, examples: Any, say: Say) -> Self:
        """What the method needs of a study, from training and validation data alone.

        Args:
            settings: a study of this method's model.
            examples: the places of users' sequences that training reads; None: all of them.
            say: told each step as it begins.
        """

    @classmethod
    def prepared_by(cls, key: str) -> bool:
        """Whether preparation reads this dotted setting, so that another value needs another preparation."""
        return any(key == read or key.startswith(f"{read}.") for read in cls.reads)

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What preparation found, by name, without the encoder; `restored` reads it."""

    @classmethod
    @abstractmethod
    def restored(cls, settings: Any, encoder: Any, tensors: Mapping[str, Tensor]) -> Self:
        """The method whose `tensors` these are."""

    def under(self, settings: StudySettings) -> Self:
        """The same preparation for a variation of the study's model."""
        return dataclasses.replace(self, settings=settings)

    def build(
        self, materials: SharedInputs, *, replace_every: int, generator: torch.Generator, lora: bool = False
    ) -> RecommenderModel:
        """A recommender at its start; ``lora``: with LoRA for layouts that choose it."""
        model = (
            MODELS[self.settings.model.kind]
            .build(
                materials.catalogue.backbone,
                self.settings.model,
                n_users=materials.development.n_users,
                n_items=materials.development.n_items,
                replace_every=replace_every,
                encoder=self.encoder if self.settings.model.holds_encoder else None,
                generator=generator,
                lora=lora,
            )
            .to(materials.device)
        )
        self.start(model, materials, generator)
        return model

    @abstractmethod
    def start(self, model: Any, materials: SharedInputs, generator: torch.Generator) -> None:
        """Set what of a new model does not start at random."""

    has_fixed_shapes: ClassVar[bool] = False  # whether there is `fixed`

    def fixed(self, batch: SequenceBatch, drawn: Drawn, row_format: RowFormat) -> tuple[SequenceBatch, Drawn]:
        """The same, padded to shapes that come again."""
        raise NotImplementedError

    @property
    def reads_padding(self) -> bool:
        """Whether a row's padding changes its states, so that rows of several seeds cannot be padded alike."""
        return False

    @abstractmethod
    def plan(self, materials: SharedInputs, batch_size: int) -> RowPlan:
        """The rows of an epoch.

        Raises:
            StudyError: if batches of this size are too small for the model's losses.
        """

    @abstractmethod
    def draw(self, batch: SequenceBatch, materials: SharedInputs, generator: torch.Generator) -> Drawn:
        """What a batch's losses draw at random, and everything else that no layout changes; on the CPU."""

    @abstractmethod
    def drawn_losses(
        self, model: RecommenderModel, batch: SequenceBatch, drawn: Drawn, layout: Tensor, materials: SharedInputs
    ) -> dict[str, Tensor]:
        """The terms of the loss whose weight is not zero, by name, each ``(K,)``: one of every candidate.

        ``batch`` and ``drawn`` are those of all K candidates, one after another, on the layout's device; layout
        ``(layers, sites)`` for K = 1, ``(K, layers, sites)`` for more.
        """

    def losses(
        self,
        model: RecommenderModel,
        batch: SequenceBatch,
        layout: Tensor,
        materials: SharedInputs,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """`drawn_losses` of a single candidate, with what they draw."""
        drawn = self.draw(batch, materials, generator)
        return self.drawn_losses(model, batch.to(layout.device), drawn.to(layout.device), layout, materials)

    @property
    @abstractmethod
    def weights(self) -> dict[str, float]:
        """The weight of every term."""

    def baseline_ranks(self, users: IntArray, histories: Sequence[IntArray], targets: IntArray) -> dict[str, IntArray]:
        """Ranks of the targets by the ID models that are in the model, each alone, under its name."""
        if self.encoder is None or not self.settings.model.holds_encoder:
            return {}
        title = ENCODERS[self.settings.encoder.name].title
        return {title: encoder_ranks(self.encoder, users, histories, targets)}


def example_tensors(examples: Examples | None) -> dict[str, Tensor]:
    """For `TrainingTask.tensors`; nothing of None."""
    return prefixed("examples", None if examples is None else vars(examples))


def restored_examples(tensors: Mapping[str, Tensor]) -> Examples | None:
    """What `example_tensors` were made of."""
    found = under("examples", tensors)
    return Examples(**{name: tensor.numpy() for name, tensor in found.items()}) if found else None


def weighted_total(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The loss of every candidate, ``(K,)``: each term times its weight, summed."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum(0)

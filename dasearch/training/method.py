"""The training tasks: how each model is built and trained, with its losses and baselines."""

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
from dasearch.data import Examples, IntArray, RowFormat, RowPlan, SequenceBatch, training_plan
from dasearch.data.rows import moved
from dasearch.layout import Structure
from dasearch.models.base import RecommenderModel
from dasearch.models.id_encoders import ENCODERS, IDEncoder
from dasearch.models.registry import MODELS
from dasearch.training.checkpoints import prefixed, under
from dasearch.training.encoders import encoder_ranks
from dasearch.training.shared import Say, SharedInputs

SHARED_READS = ("seed", "device", "data", "backbone", "examples", "model.kind", "model.attn_scale")


@dataclass(frozen=True)
class Drawn:
    """The sampled inputs of a batch's losses, as tensors whose first axis is the candidate.

    Attributes:
        fills: padding value of a tensor, by name, where candidates have different sizes; 0 for the others.
    """

    fills: ClassVar[dict[str, int]] = {}

    def to(self, device: torch.device) -> Self:
        """The same tensors on another device."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return type(self)(**{n: part if part is None else moved(part, device) for n, part in parts.items()})

    @classmethod
    def together(cls, drawn: Sequence[Drawn]) -> Self:
        """The tensors of several candidates, concatenated and padded to a common size."""
        if len(drawn) == 1:
            return drawn[0]  # type: ignore[return-value]
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: _padded([getattr(one, name) for one in drawn], cls.fills.get(name, 0)) for name in names})


def kept(shape: tuple[int, ...], dropout: float, generator: torch.Generator) -> Tensor:
    """A pre-sampled dropout factor: 0, or one over the keep probability."""
    return (torch.rand(shape, generator=generator) >= dropout) / (1 - dropout)


def widened(tensor: Tensor, axis: int, size: int, fill: int) -> Tensor:
    """The tensor padded at the end of one axis to a size."""
    room = [0, 0] * (tensor.dim() - 1 - axis) + [0, max(0, size - tensor.shape[axis])]
    return F.pad(tensor, room, value=fill)


def _padded(parts: Sequence[Tensor | None], fill: int) -> Tensor | None:
    """Concatenation along the first axis, other axes padded at their end to the longest; None if all are None."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    nothing = known[0].new_empty((1, 0, *known[0].shape[2:]))  # for a candidate without this tensor
    filled = [nothing if part is None else part for part in parts]
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in filled), strict=True)]
    padded = []
    for part in filled:
        room = [size - own for size, own in zip(longest, part.shape[1:], strict=True)]
        padded.append(F.pad(part, [end for size in reversed(room) for end in (0, size)], value=fill))
    return torch.cat(padded)


@dataclass(frozen=True)
class TrainingTask(ABC):
    """A model's training with everything prepared for it by a study; independent of layout, recipe and seed.

    Attributes:
        encoder: the trained ID encoder, if the model reads one.
        examples: the positions of users' sequences that are trained on; None: all of them.
    """

    settings: StudySettings
    encoder: IDEncoder | None
    examples: Examples | None
    reads: ClassVar[tuple[str, ...]]  # the settings that preparation depends on, sections or keys

    @classmethod
    @abstractmethod
    def prepare(cls, settings: Any, materials: SharedInputs, examples: Any, say: Say) -> Self:
        """Prepare the task from training and validation data only.

        Args:
            settings: a study of this task's model.
            materials: the inputs shared by all trainings.
            examples: as of the class.
            say: callback that receives a message before each step.
        """

    @classmethod
    def prepared_by(cls, key: str) -> bool:
        """Whether preparation depends on this dotted setting, so that another value requires another preparation."""
        return any(key == read or key.startswith(f"{read}.") for read in cls.reads)

    def tensors(self) -> dict[str, Tensor]:
        """The prepared tensors by name, without the encoder; the input of `restored`. By default the examples alone."""
        return prefixed("examples", None if self.examples is None else vars(self.examples))

    @classmethod
    @abstractmethod
    def restored(cls, settings: Any, encoder: Any, tensors: Mapping[str, Tensor]) -> Self:
        """The task with these `tensors`."""

    def under(self, settings: StudySettings) -> Self:
        """The same task for a variation of the study's model."""
        return dataclasses.replace(self, settings=settings)

    def build(self, materials: SharedInputs, structure: Structure, generator: torch.Generator) -> RecommenderModel:
        """An initialised, untrained recommender."""
        model = (
            MODELS[self.settings.model.kind]
            .build(
                materials.catalogue.backbone,
                self.settings.model,
                n_users=materials.development.n_users,
                n_items=materials.development.n_items,
                encoder=self.encoder if self.settings.model.holds_encoder else None,
                generator=generator,
                **structure._asdict(),
            )
            .to(materials.device)
        )
        self.start(model, materials, generator)
        return model

    @abstractmethod
    def start(self, model: Any, materials: SharedInputs, generator: torch.Generator) -> None:
        """Set the initial weights of a new model that are not random."""

    has_fixed_shapes: ClassVar[bool] = False  # whether `fixed` is implemented

    def fixed(self, batch: SequenceBatch, drawn: Drawn, row_format: RowFormat) -> tuple[SequenceBatch, Drawn]:
        """The batch and its sampled inputs, padded to repeating shapes."""
        raise NotImplementedError

    @property
    def reads_padding(self) -> bool:
        """Whether padding affects a row's states, so that rows of several seeds cannot be padded to a common length."""
        return False

    def plan(self, materials: SharedInputs, batch_size: int) -> RowPlan:
        """The training rows of an epoch; by default users' rows, with a target at every item.

        Raises:
            StudyError: if batches of this size are too small for the model's losses.
        """
        catalogue = materials.catalogue
        return training_plan(materials.development, catalogue.row_sentences, catalogue.row_format, self.examples)

    @abstractmethod
    def draw(self, batch: SequenceBatch, materials: SharedInputs, generator: torch.Generator) -> Drawn:
        """Sample the random inputs of a batch's losses, and collect others that do not depend on the layout; on the CPU."""

    @abstractmethod
    def drawn_losses(
        self, model: RecommenderModel, batch: SequenceBatch, drawn: Drawn, layout: Tensor, materials: SharedInputs
    ) -> dict[str, Tensor]:
        """The loss terms with nonzero weight, by name, each ``(K,)``: one value per candidate.

        ``batch`` and ``drawn`` hold all K candidates, concatenated, on the layout's device; layout ``(layers, sites)`` for K = 1,
        ``(K, layers, sites)`` for more.
        """

    def losses(
        self,
        model: RecommenderModel,
        batch: SequenceBatch,
        layout: Tensor,
        materials: SharedInputs,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """`drawn_losses` of a single candidate, with newly sampled inputs."""
        drawn = self.draw(batch, materials, generator)
        return self.drawn_losses(model, batch.to(layout.device), drawn.to(layout.device), layout, materials)

    @property
    @abstractmethod
    def weights(self) -> dict[str, float]:
        """The weight of every loss term, by name."""

    def baseline_ranks(self, users: IntArray, histories: Sequence[IntArray], targets: IntArray) -> dict[str, IntArray]:
        """Ranks of the targets by the model's own ID models, each alone, by display name."""
        if self.encoder is None or not self.settings.model.holds_encoder:
            return {}
        title = ENCODERS[self.settings.encoder.name].title
        return {title: encoder_ranks(self.encoder, users, histories, targets)}


def restored_examples(tensors: Mapping[str, Tensor]) -> Examples | None:
    """The examples among the tensors of a task; None if it trains on all."""
    parts = under("examples", tensors)
    return Examples(**{name: tensor.numpy() for name, tensor in parts.items()}) if parts else None


def weighted_total(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The total loss of every candidate, ``(K,)``: the weighted sum of its terms."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum(0)

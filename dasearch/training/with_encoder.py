"""Shared by the training of IDLE-Adapter and RA-Rec: a trained ID encoder, single-target examples, frozen states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dasearch.config import EncoderStudy
from dasearch.data import Examples, RowPlan, Rows, SequenceBatch, example_plan
from dasearch.models.id_encoders import IDEncoder
from dasearch.models.prefix import frozen_layer_means
from dasearch.training.method import SHARED_READS, TrainingTask
from dasearch.training.shared import SharedInputs

FROZEN_BATCH = 128  # rows per forward pass of the unmodified model
KEPT_BYTES = 2**30  # frozen states are cached up to this size, else recomputed for each batch


@dataclass(frozen=True)
class EncoderMethod(TrainingTask):
    """A training task whose model reads vectors of a trained ID encoder.

    Attributes:
        frozen: token means of each layer's input in the unmodified model, per example: ``(examples, layers, width)``.
    """

    settings: EncoderStudy
    encoder: IDEncoder
    examples: Examples
    frozen: Tensor | None
    reads = (*SHARED_READS, "encoder")

    def tensors(self) -> dict[str, Tensor]:
        """The examples and their frozen states, by name."""
        return {**super().tensors(), **({} if self.frozen is None else {"frozen": self.frozen})}

    def plan(self, materials: SharedInputs, batch_size: int) -> RowPlan:
        """Rows of single-target examples."""
        return _examples_plan(materials, self.examples)

    def frozen_means(self, batch: SequenceBatch, materials: SharedInputs) -> Tensor:
        """Token means of every layer's input in the unmodified model: ``(1, batch, layers, width)``."""
        return kept_or_computed(self.frozen, batch.examples, batch.rows, materials)[None]


def kept_or_computed(kept: Tensor | None, places: Tensor, rows: Rows, materials: SharedInputs) -> Tensor:
    """Frozen means of ``rows``: from ``kept`` at ``places``, or recomputed if ``kept`` is None."""
    if kept is not None:
        return kept[places]
    backbone = materials.catalogue.backbone
    return frozen_layer_means(backbone, rows.to(materials.device), range(len(backbone.blocks)))


def _examples_plan(materials: SharedInputs, examples: Examples) -> RowPlan:
    catalogue = materials.catalogue
    return example_plan(materials.development, examples, catalogue.row_sentences, catalogue.row_format)


def frozen_examples(materials: SharedInputs, examples: Examples) -> Tensor | None:
    """`EncoderMethod.frozen`, or None if it would exceed `KEPT_BYTES`."""
    backbone = materials.catalogue.backbone
    layers = range(len(backbone.blocks))
    shape = (len(examples), len(layers), backbone.width)
    if 4 * shape[0] * shape[1] * shape[2] > KEPT_BYTES:
        return None
    kept = torch.empty(shape)
    for _, batch in _examples_plan(materials, examples).by_length(FROZEN_BATCH):
        kept[batch.examples] = frozen_layer_means(backbone, batch.rows.to(materials.device), layers).cpu()
    return kept

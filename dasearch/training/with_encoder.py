"""What training IDLE-Adapter and RA-Rec has in common: a trained ID encoder, single-target examples, frozen states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dasearch.config import EncoderStudy
from dasearch.data import Examples, RowPlan, Rows, SequenceBatch, example_plan
from dasearch.models.id_encoders import IDEncoder
from dasearch.models.prefix import frozen_layer_means
from dasearch.training.method import SHARED_READS, TrainingTask, example_tensors
from dasearch.training.shared import SharedInputs

FROZEN_BATCH = 128  # rows of one forward pass of the plain model
KEPT_BYTES = 2**30  # frozen states are kept up to this size, else computed again for each batch


@dataclass(frozen=True)
class EncoderMethod(TrainingTask):
    """A method whose model reads vectors of a trained ID encoder.

    Attributes:
        frozen: what each layer of the plain model reads for each example, token means: ``(examples, layers, width)``.
    """

    settings: EncoderStudy
    encoder: IDEncoder
    examples: Examples
    frozen: Tensor | None
    reads = (*SHARED_READS, "encoder")

    def tensors(self) -> dict[str, Tensor]:
        return {**example_tensors(self.examples), **({} if self.frozen is None else {"frozen": self.frozen})}

    def plan(self, materials: SharedInputs, batch_size: int) -> RowPlan:
        return _examples_plan(materials, self.examples)

    def frozen_means(self, batch: SequenceBatch, materials: SharedInputs) -> Tensor:
        """Token means of what every layer of the plain model reads: ``(1, batch, layers, width)``."""
        return kept_or_computed(self.frozen, batch.examples, batch.rows, materials)[None]


def kept_or_computed(kept: Tensor | None, places: Tensor, rows: Rows, materials: SharedInputs) -> Tensor:
    """Frozen means of ``rows``: ``kept`` at their places, or computed anew where none are kept."""
    if kept is not None:
        return kept[places]
    backbone = materials.catalogue.backbone
    return frozen_layer_means(backbone, rows.to(materials.device), range(len(backbone.blocks)))


def _examples_plan(materials: SharedInputs, examples: Examples) -> RowPlan:
    catalogue = materials.catalogue
    return example_plan(materials.development, examples, catalogue.row_sentences, catalogue.row_format)


def frozen_examples(materials: SharedInputs, examples: Examples) -> Tensor | None:
    """`EncoderMethod.frozen`, or None where it would be larger than `KEPT_BYTES`."""
    backbone = materials.catalogue.backbone
    layers = range(len(backbone.blocks))
    shape = (len(examples), len(layers), backbone.width)
    if 4 * shape[0] * shape[1] * shape[2] > KEPT_BYTES:
        return None
    kept = torch.empty(shape)
    for _, batch in _examples_plan(materials, examples).by_length(FROZEN_BATCH):
        kept[batch.examples] = frozen_layer_means(backbone, batch.rows.to(materials.device), layers).cpu()
    return kept

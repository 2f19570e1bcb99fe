"""What training IDLE-Adapter and RA-Rec has in common: a trained ID encoder, single-target examples, frozen states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dasearch.config import EncoderStudy
from dasearch.data import Development, Examples, IntArray, Rows, SequenceBatch, example_batches, n_example_batches
from dasearch.models.id_encoders import ENCODERS, IDEncoder
from dasearch.models.prefix import frozen_layer_means
from dasearch.training.encoders import encoder_ranks
from dasearch.training.materials import Shared
from dasearch.training.method import SHARED_READS, Method
from dasearch.training.seeds import generator_for

FROZEN_BATCH = 128  # rows of one forward pass of the plain model
KEPT_BYTES = 2**30  # frozen states are kept up to this size, else computed again for each batch


@dataclass(frozen=True)
class EncoderMethod(Method):
    """A method whose model reads vectors of a trained ID encoder.

    Attributes:
        frozen: what each layer of the plain model reads for each example, token means: ``(examples, layers, width)``.
    """

    settings: EncoderStudy
    encoder: IDEncoder
    examples: Examples
    frozen: Tensor | None
    reads = (*SHARED_READS, "encoder")

    def n_batches(self, development: Development, batch_size: int) -> int:
        return n_example_batches(development, self.examples, batch_size)

    def batches(self, materials: Shared, batch_size: int, generator: torch.Generator) -> Iterator[SequenceBatch]:
        catalogue = materials.catalogue
        return example_batches(
            materials.development,
            self.examples,
            catalogue.sentences,
            catalogue.row_format,
            batch_size=batch_size,
            generator=generator,
        )

    def frozen_means(self, batch: SequenceBatch, materials: Shared, layers: tuple[int, ...]) -> Tensor:
        """Token means of what the given layers of the plain model read, ``(batch, layers, width)``, on the device."""
        return kept_or_computed(self.frozen, batch.examples, batch.rows, materials, layers)

    def baseline_ranks(self, users: IntArray, histories: Sequence[IntArray], targets: IntArray) -> dict[str, IntArray]:
        return {ENCODERS[self.settings.encoder.name].title: encoder_ranks(self.encoder, users, histories, targets)}


def kept_or_computed(
    kept: Tensor | None, places: Tensor, rows: Rows, materials: Shared, layers: tuple[int, ...]
) -> Tensor:
    """Frozen means of ``rows``, on the device: ``kept`` at their places, or computed anew where none are kept."""
    if kept is not None:
        return kept[places][:, list(layers)].to(materials.device)
    return frozen_layer_means(materials.catalogue.backbone, rows.to(materials.device), layers)


def frozen_examples(materials: Shared, examples: Examples) -> Tensor | None:
    """`EncoderMethod.frozen`, or None where it would be larger than `KEPT_BYTES`."""
    backbone = materials.catalogue.backbone
    layers = range(len(backbone.blocks))
    shape = (len(examples), len(layers), backbone.width)
    if 4 * shape[0] * shape[1] * shape[2] > KEPT_BYTES:
        return None
    kept = torch.empty(shape)
    for batch in example_batches(
        materials.development,
        examples,
        materials.catalogue.sentences,
        materials.catalogue.row_format,
        batch_size=FROZEN_BATCH,
        generator=generator_for("frozen states"),
    ):
        kept[batch.examples] = frozen_layer_means(backbone, batch.rows.to(materials.device), layers).cpu()
    return kept

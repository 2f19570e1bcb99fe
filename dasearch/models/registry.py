"""The registry of recommenders: inputs, requirements and constructor of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from dasearch.layout import SITES, ModelKind
from dasearch.models.base import RecommenderModel
from dasearch.models.darec import DARec
from dasearch.models.e4s_rec import E4SRec
from dasearch.models.idle import IDLEAdapter
from dasearch.models.ra_rec import RARec


class Prompts(NamedTuple):
    """The fixed text before a user's row and an item's row."""

    user: str
    item: str


@dataclass(frozen=True)
class ModelSpec:
    """Properties of a kind of recommender that are known before building one.

    Attributes:
        build: constructor, called with a frozen backbone, the model's settings and the keywords ``n_users``, ``n_items``,
            ``replace_every``, ``encoder`` (None if the settings need none), ``generator`` and ``lora`` (True only for models with
            adapters).
        decoder_only: whether the backbone must be a decoder.
        closes_by_trained_tokens: whether items of a row end with trained tokens rather than a comma.
        parallel_reads: the input of a parallel site, as described in ``layout.json``.
        reads_texts: whether users' rows contain the items' sentences; otherwise a single token per item.
    """

    kind: ModelKind
    build: Callable[..., RecommenderModel]
    prompts: Prompts
    decoder_only: bool
    closes_by_trained_tokens: bool
    parallel_reads: str
    reads_texts: bool = True

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites of a layer, in the order of a layout's letters."""
        return SITES[self.kind]


INSTRUCTION = "Your task is to recommend the next product. The purchase history is"  # after SPEC 3, 4


def _without_users(model: Callable[..., RecommenderModel]) -> Callable[..., RecommenderModel]:
    """A constructor without ``n_users``, for models that have no user table of their own."""

    def build(*given: Any, n_users: int, **keywords: Any) -> RecommenderModel:
        return model(*given, **keywords)

    return build


def _without_lora(model: Callable[..., RecommenderModel]) -> Callable[..., RecommenderModel]:
    def build(*given: Any, lora: bool, **keywords: Any) -> RecommenderModel:
        return model(*given, **keywords)

    return build


def _prefix_model(kind: ModelKind, model: Callable[..., RecommenderModel], item_prompt: str) -> ModelSpec:
    """The specification of a prefix model, over a decoder or an encoder."""
    return ModelSpec(
        kind,
        _without_lora(_without_users(model)),
        Prompts(INSTRUCTION, item_prompt),
        decoder_only=False,
        closes_by_trained_tokens=False,
        parallel_reads="the prefix alone, by attention beside the layer's own",
    )


MODELS: dict[ModelKind, ModelSpec] = {
    spec.kind: spec
    for spec in (
        ModelSpec(
            ModelKind.DAREC,
            DARec,
            Prompts("", "Give the ID of the item described by:"),  # DARec sec. 2.2.2
            decoder_only=True,
            closes_by_trained_tokens=True,
            parallel_reads="sublayer input (after the frozen norm)",
        ),
        _prefix_model(ModelKind.IDLE, IDLEAdapter, ""),
        _prefix_model(ModelKind.RA_REC, RARec, "The product is"),
        ModelSpec(
            ModelKind.E4S_REC,
            _without_users(E4SRec),
            Prompts(INSTRUCTION, ""),
            decoder_only=True,
            closes_by_trained_tokens=True,
            parallel_reads="sublayer input (after the frozen norm)",
            reads_texts=False,
        ),
    )
}

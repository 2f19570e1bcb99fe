"""Inputs that do not depend on the layout, computed once per study and shared by all its trainings.

The frozen backbone, the tokenised catalogue, the items' text vectors, purchases. Computed from training and validation data
only: `Development` contains no test item.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from dasearch.config import Precision, StudySettings
from dasearch.data import Dataset, Development, ItemRows, RowFormat, Sentences, item_sentence, tokenise_items
from dasearch.errors import BackboneError
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.cache import default_cache
from dasearch.models.pretrained import load_pretrained
from dasearch.models.registry import MODELS, ModelSpec
from dasearch.models.tiny_opt import (
    TINY_OPT,
    Progress,
    TinyOPTSettings,
    tiny_opt,
    training_seconds,
    untrained_tiny_opt,
)
from dasearch.training.method import TrainingTask
from dasearch.training.shared import Catalogue, SharedInputs

SEPARATOR = ","  # between the items of a hard prompt
CUDA_MULTIPLE = 16  # multiple of a row's tokens plus one key: fewer shapes, and masks aligned for CUDA kernels
VECTOR_BATCH = 256  # item sentences per frozen forward pass


@dataclass(frozen=True)
class Tokens:
    """The tokenised catalogue: its sentences, the rows' form of them, and the prompt before an item's row."""

    sentences: Sentences
    row_format: RowFormat
    item_prompt: tuple[int, ...]


@dataclass(frozen=True)
class StudyContext(SharedInputs):
    """The shared inputs together with the study's training task."""

    method: TrainingTask

    def on(self, development: Development) -> StudyContext:
        """The same context with other users, such as Data_BO."""
        return dataclasses.replace(self, development=development)

    def computing_in(self, precision: Precision) -> StudyContext:
        """The same context with the frozen model in this precision."""
        backbone = self.catalogue.backbone.computing_in(compute_dtype(precision, self.device), self.device)
        return dataclasses.replace(self, catalogue=dataclasses.replace(self.catalogue, backbone=backbone))

    def under(self, settings: StudySettings) -> StudyContext:
        """The same context with a variation of its model."""
        return dataclasses.replace(self, method=self.method.under(settings))


def resolve_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BackboneError(f"device is {name} and this machine has no CUDA GPU; use --set device=cpu")
    return torch.device(name)


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the frozen model's computation; trained parameters, their moments and losses are always float32."""
    wanted = device.type == "cuda" if precision is Precision.AUTO else precision is Precision.BFLOAT16
    return torch.bfloat16 if wanted else torch.float32


def open_backbone(
    settings: StudySettings, dataset: Dataset, *, progress: Progress | None = None, trained: bool = True
) -> tuple[FrozenBackbone, transformers.PreTrainedTokenizerBase]:
    """The study's language model and tokenizer; ``trained=False`` gives a tiny-opt with random weights, for estimates."""
    backbone = settings.backbone
    if backbone.name != TINY_OPT:
        model, tokenizer = load_pretrained(backbone.name, layers=backbone.layers)
    else:
        texts, tiny, prompt = _tiny(settings, dataset)
        if trained:
            model, tokenizer = tiny_opt(texts, tiny, cache=default_cache() / TINY_OPT, prompt=prompt, progress=progress)
        else:
            model, tokenizer = untrained_tiny_opt(texts, tiny, prompt=prompt)
    return FrozenBackbone(model, name=backbone.name, scale=settings.model.attn_scale), tokenizer


def language_model_seconds(settings: StudySettings, dataset: Dataset) -> float:
    """Estimated seconds to train the study's tiny-opt on this machine; 0 if the model already exists."""
    if settings.backbone.name != TINY_OPT:
        return 0.0
    texts, tiny, prompt = _tiny(settings, dataset)
    return training_seconds(texts, tiny, cache=default_cache() / TINY_OPT, prompt=prompt)


def _tiny(settings: StudySettings, dataset: Dataset) -> tuple[list[str], TinyOPTSettings, str]:
    """The training text of tiny-opt, its sizes, and the prompt for its tokenizer."""
    tiny = settings.backbone.tiny.settings()
    tiny = dataclasses.replace(tiny, layers=settings.backbone.layers or tiny.layers)
    prompt = " ".join(text for text in MODELS[settings.model.kind].prompts if text)
    return [item_sentence(item) for item in dataset.items], tiny, prompt


def build_catalogue(
    settings: StudySettings, dataset: Dataset, backbone: FrozenBackbone, tokenizer: transformers.PreTrainedTokenizerBase
) -> Catalogue:
    """Tokenise the catalogue and define its rows."""
    return lay_out(settings, dataset, backbone, tokenizer, _tokenised(settings, dataset, backbone, tokenizer))


def _tokenised(
    settings: StudySettings, dataset: Dataset, backbone: FrozenBackbone, tokenizer: transformers.PreTrainedTokenizerBase
) -> Tokens:
    spec, pad = MODELS[settings.model.kind], tokenizer.pad_token_id or 0
    opening, item_opening = (
        tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in spec.prompts
    )
    row_format = RowFormat(
        *_closing_tokens(spec, backbone, tokenizer),
        pad_token=pad if pad < backbone.vocabulary else 0,  # added only to the tokenizer; padding is never attended to
        start_token=tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        max_items=settings.data.max_items,
        max_tokens=backbone.max_tokens,
        prompt=tuple(opening),
        history_items=settings.history_items,
        multiple=CUDA_MULTIPLE if resolve_device(settings.device).type == "cuda" else 1,
    )
    sentences = Sentences(tokenise_items(dataset.items, tokenizer, max_tokens=settings.data.item_tokens))
    _require_rows(backbone, [*row_format.opening, *item_opening, *sentences.flat.tolist()])
    _require_room(backbone, max(len(row_format.opening), len([*row_format.start, *item_opening])), sentences)
    return Tokens(sentences, row_format, tuple(item_opening))


def lay_out(
    settings: StudySettings,
    dataset: Dataset,
    backbone: FrozenBackbone,
    tokenizer: transformers.PreTrainedTokenizerBase,
    tokens: Tokens,
) -> Catalogue:
    """The rows of a tokenised catalogue."""
    sentences, row_format = tokens.sentences, tokens.row_format
    identifiers = "\n".join(item.identifier for item in dataset.items)
    return Catalogue(
        dataset.name,
        hashlib.sha256(identifiers.encode()).hexdigest()[:24],
        backbone,
        tokenizer,
        sentences,
        sentences if MODELS[settings.model.kind].reads_texts else sentences.emptied(),
        row_format,
        ItemRows(tokens.item_prompt, sentences, row_format, prompt_group=settings.model.prompt_group),
        dataset.items,
    )


def _require_rows(backbone: FrozenBackbone, tokens: Sequence[int]) -> None:
    """Check that the model has an embedding for every token; tokens added only to the tokenizer have none."""
    largest = max(tokens)
    if largest >= backbone.vocabulary:
        raise BackboneError(
            f"{backbone.name or 'the backbone'} has {backbone.vocabulary} token embeddings and its tokenizer gives token "
            f"{largest}; save the tokenizer that the model was trained with in its folder, or resize the model's embeddings"
        )


def _require_room(backbone: FrozenBackbone, opening: int, sentences: Sentences) -> None:
    """Check that a row has room for the prompt and at least one item."""
    longest = int(sentences.lengths.max())
    needed = opening + longest + 1
    if needed > backbone.max_tokens:
        raise BackboneError(
            f"{backbone.name or 'the backbone'} reads rows of {backbone.max_tokens} tokens, and the prompt ({opening}) with "
            f"the longest item ({longest}) needs {needed}; lower data.item_tokens, or choose a backbone that reads more"
        )


def _closing_tokens(
    spec: ModelSpec, backbone: FrozenBackbone, tokenizer: transformers.PreTrainedTokenizerBase
) -> tuple[int, int]:
    """The tokens that close each item of a user's row and an item's row: two trained tokens, or a comma."""
    if spec.closes_by_trained_tokens:
        return backbone.vocabulary, backbone.vocabulary + 1
    comma = tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"][-1]
    return comma, comma


@torch.inference_mode()
def text_vectors(catalogue: Catalogue, device: torch.device) -> Tensor:
    """Mean of the frozen model's last hidden states over each item's sentence: ``(items, width)`` (DARec app. A).

    App. A uses BERT; here the study's own backbone replaces it.
    """
    vectors = []
    for items in torch.arange(len(catalogue.sentences)).split(VECTOR_BATCH):
        tokens, real = catalogue.sentences.padded(items, pad_token=catalogue.row_format.pad_token)
        tokens, real = tokens.to(device), real.to(device)
        hidden = catalogue.backbone.hidden_states(tokens, real).float()
        vectors.append((hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True))
    return torch.cat(vectors).clone()

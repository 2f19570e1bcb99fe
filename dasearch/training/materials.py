"""What no layout changes, computed once a study and shared by all its trainings.

The frozen backbone, the tokenised catalogue, hard negatives, pre-trained CF vectors. Made from training and validation
data alone: `Development` carries no test item.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dasearch.config import StudySettings
from dasearch.data import (
    AlignmentRows,
    Dataset,
    Development,
    HardNegatives,
    RowFormat,
    Sentences,
    hard_negatives,
    item_sentence,
    mf_vectors,
    tokenise_items,
)
from dasearch.errors import BackboneError
from dasearch.models.backbone import FrozenBackbone, load_pretrained
from dasearch.models.darec import DARec, build_collaborative
from dasearch.models.tiny_opt import Progress, default_cache, tiny_opt, untrained_tiny_opt
from dasearch.training.losses import bpr_loss
from dasearch.training.seeds import generator_for

PROMPT = "Give the ID of the item described by:"  # DARec sec. 2.2.2
TINY_OPT = "tiny-opt"
VECTOR_BATCH = 256  # item sentences of one frozen forward pass


@dataclass(frozen=True)
class Catalogue:
    """The items as a backbone reads them; enough to score histories, without any interaction."""

    dataset_name: str
    backbone: FrozenBackbone
    tokenizer: PreTrainedTokenizerBase
    sentences: Sentences
    row_format: RowFormat
    alignment: AlignmentRows


@dataclass(frozen=True)
class Materials:
    """All that a training reads besides its layout, its recipe and its seed."""

    catalogue: Catalogue
    development: Development
    purchases: PurchaseIndex
    negatives: HardNegatives
    item_counts: Tensor  # (items,) of training events
    text_vectors: Tensor  # (items, width) of the frozen model
    cf_state: dict[str, Tensor] | None
    device: torch.device

    def on(self, development: Development) -> Materials:
        """The same study on other users, such as Data_BO."""
        return dataclasses.replace(self, development=development)


class PurchaseIndex:
    """Which user bought which item in training: uniform negatives for BPR that were not bought.

    Args:
        development: users' training sequences.
    """

    def __init__(self, development: Development) -> None:
        self.n_items = development.n_items
        keys = [
            np.unique(sequence) + user * self.n_items
            for user, sequence in zip(development.users.tolist(), development.train, strict=True)
        ]
        self.keys = torch.from_numpy(np.sort(np.concatenate(keys)))

    def bought(self, users: Tensor, items: Tensor) -> Tensor:
        """Shapes: users, items ``(n,)`` -> ``(n,)`` bool."""
        wanted = users * self.n_items + items
        at = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return self.keys[at] == wanted

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Every distinct (user, item) of training."""
        return self.keys // self.n_items, self.keys % self.n_items

    def sample_negatives(self, users: Tensor, generator: torch.Generator, *, rounds: int = 4) -> Tensor:
        """An item for each user, redrawn up to ``rounds`` times while it is one the user bought. Shape ``(n,)``."""
        items = torch.randint(self.n_items, users.shape, generator=generator)
        for _ in range(rounds):
            again = torch.randint(self.n_items, users.shape, generator=generator)
            items = torch.where(self.bought(users, items), again, items)
        return items


def resolve_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BackboneError(f"device is {name} and this machine has no CUDA GPU; use --set device=cpu")
    return torch.device(name)


def open_backbone(
    settings: StudySettings, dataset: Dataset, *, progress: Progress | None = None, trained: bool = True
) -> tuple[FrozenBackbone, PreTrainedTokenizerBase]:
    """The study's language model; ``trained=False`` gives a tiny-opt of random weights, for estimates only."""
    backbone = settings.backbone
    if backbone.name != TINY_OPT:
        model, tokenizer = load_pretrained(backbone.name, layers=backbone.layers)
    else:
        tiny = backbone.tiny.settings()
        tiny = dataclasses.replace(tiny, layers=backbone.layers or tiny.layers)
        texts = [item_sentence(item) for item in dataset.items]
        if trained:
            model, tokenizer = tiny_opt(texts, tiny, cache=default_cache() / TINY_OPT, prompt=PROMPT, progress=progress)
        else:
            model, tokenizer = untrained_tiny_opt(texts, tiny, prompt=PROMPT)
    return FrozenBackbone(model, name=backbone.name, scale=settings.model.attn_scale), tokenizer


def build_catalogue(
    settings: StudySettings, dataset: Dataset, backbone: FrozenBackbone, tokenizer: PreTrainedTokenizerBase
) -> Catalogue:
    """Tokenise the catalogue and lay out its rows."""
    row_format = RowFormat(
        seq_token=backbone.vocabulary,
        align_token=backbone.vocabulary + 1,
        pad_token=tokenizer.pad_token_id or 0,
        start_token=tokenizer.bos_token_id,
        max_items=settings.data.max_items,
        max_tokens=backbone.max_tokens,
    )
    sentences = Sentences(tokenise_items(dataset.items, tokenizer, max_tokens=settings.data.item_tokens))
    prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    alignment = AlignmentRows(prompt, sentences, row_format, prompt_group=settings.model.prompt_group)
    return Catalogue(dataset.name, backbone, tokenizer, sentences, row_format, alignment)


def prepare(
    settings: StudySettings,
    catalogue: Catalogue,
    development: Development,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Materials:
    """Everything that trainings share; ``say`` is told each step as it begins."""
    device = resolve_device(settings.device)
    catalogue.backbone.to(device)
    say("reading the catalogue with the frozen model")
    texts = text_vectors(catalogue, device)
    say("finding hard negatives")
    rank = min(settings.data.mf_rank, development.n_users, development.n_items)
    factors = torch.as_tensor(mf_vectors(development.train, development.n_items, rank=rank))
    negatives = hard_negatives(texts.cpu(), factors, development.train, fraction=settings.data.hard_negative_fraction)
    purchases = PurchaseIndex(development)
    cf_state = None
    if settings.model.uses_collaborative and settings.cf.epochs:
        say("training collaborative vectors")
        cf_state = pretrain_collaborative(settings, development, purchases)
    counts = torch.as_tensor(development.item_counts(), dtype=torch.float32)
    return Materials(catalogue, development, purchases, negatives, counts, texts, cf_state, device)


@torch.inference_mode()
def text_vectors(catalogue: Catalogue, device: torch.device) -> Tensor:
    """Mean of the frozen model's last hidden states over each item's sentence: ``(items, width)`` (DARec app. A).

    App. A takes them from BERT; the study's own backbone serves where no BERT is at hand.
    """
    found = []
    for items in torch.arange(len(catalogue.sentences)).split(VECTOR_BATCH):
        tokens, real = catalogue.sentences.padded(items, pad_token=catalogue.row_format.pad_token)
        tokens, real = tokens.to(device), real.to(device)
        hidden = catalogue.backbone.hidden_states(tokens)
        found.append((hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True))
    return torch.cat(found).clone()


def pretrain_collaborative(
    settings: StudySettings, development: Development, purchases: PurchaseIndex
) -> dict[str, Tensor]:
    """CF vectors from training purchases alone, by BPR with one uniform negative (DARec sec. 2.3.2)."""
    generator = generator_for(settings.seed, "collaborative")
    model = build_collaborative(settings.model, development.n_users, development.n_items, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.cf.lr, weight_decay=settings.cf.weight_decay)
    users, items = purchases.pairs()
    for _ in range(settings.cf.epochs):
        for batch in torch.randperm(len(users), generator=generator).split(settings.cf.batch_size):
            negatives = purchases.sample_negatives(users[batch], generator)
            loss = bpr_loss(model.scores(users[batch], items[batch]), model.scores(users[batch], negatives))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def build_model(settings: StudySettings, materials: Materials, *, replace_every: int, seed: int) -> DARec:
    """A recommender at its start; the same seed gives every layout the same initial weights."""
    generator = generator_for(settings.seed, "weights", seed)
    model = DARec(
        materials.catalogue.backbone,
        settings.model,
        n_users=materials.development.n_users,
        n_items=materials.development.n_items,
        replace_every=replace_every,
        generator=generator,
    ).to(materials.device)
    model.start_head(materials.item_counts.to(materials.device), materials.text_vectors.to(materials.device))
    if model.cf is not None and materials.cf_state is not None:
        model.cf.load_state_dict(materials.cf_state)
    return model

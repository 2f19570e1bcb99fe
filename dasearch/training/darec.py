"""Training DARec: L_seq, L_align, L_cl and L_cf on users' rows (Liu et al. 2024, sec. 2.2 and 2.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dasearch.config import DARecStudy, LossSettings
from dasearch.data import (
    ContrastiveSample,
    Development,
    Examples,
    HardNegatives,
    IntArray,
    SequenceBatch,
    hard_negatives,
    mf_vectors,
    n_training_batches,
    sample_contrastive,
    training_batches,
)
from dasearch.data.batches import HISTORY_ITEMS
from dasearch.models.base import RecommenderModel
from dasearch.models.darec import CollaborativeKind, DARec, Variation, build_collaborative
from dasearch.models.id_encoders import FactorEncoder
from dasearch.training.encoders import encoder_ranks
from dasearch.training.losses import bpr_loss, contrastive_loss, item_cross_entropy
from dasearch.training.materials import PurchaseIndex, Shared
from dasearch.training.method import SHARED_READS, Method, Say
from dasearch.training.seeds import generator_for


@dataclass(frozen=True)
class DARecMethod(Method):
    """DARec with its hard negatives and pre-trained CF vectors."""

    settings: DARecStudy
    negatives: HardNegatives
    cf_state: dict[str, Tensor] | None
    examples: Examples | None
    reads = (*SHARED_READS, "cf", "model.collaborative", "model.ncf_embedding", "model.cf_width", "model.prompt_group")

    @classmethod
    def prepare(cls, settings: DARecStudy, materials: Shared, examples: Examples | None, say: Say) -> DARecMethod:
        """Find hard negatives and train the CF vectors, on training data alone."""
        say("finding hard negatives")
        development, data = materials.development, settings.data
        rank = min(data.mf_rank, development.n_users, development.n_items)
        factors = torch.as_tensor(mf_vectors(development.train, development.n_items, rank=rank))
        texts = materials.text_vectors.cpu()
        negatives = hard_negatives(texts, factors, development.train, fraction=data.hard_negative_fraction)
        cf_state = None
        if settings.model.uses_collaborative and settings.cf.epochs:
            say("training collaborative vectors")
            cf_state = pretrain_collaborative(settings, development, materials.purchases)
        return cls(settings, negatives, cf_state, examples)

    def build(self, materials: Shared, *, replace_every: int, generator: torch.Generator) -> DARec:
        model = DARec(
            materials.catalogue.backbone,
            self.settings.model,
            n_users=materials.development.n_users,
            n_items=materials.development.n_items,
            replace_every=replace_every,
            generator=generator,
        ).to(materials.device)
        model.start_head(materials.item_counts.to(materials.device), materials.text_vectors.to(materials.device))
        if model.cf is not None and self.cf_state is not None:
            model.cf.load_state_dict(self.cf_state)
        return model

    def n_batches(self, development: Development, batch_size: int) -> int:
        return n_training_batches(development, batch_size)

    def batches(self, materials: Shared, batch_size: int, generator: torch.Generator) -> Iterator[SequenceBatch]:
        return training_batches(
            materials.development,
            materials.catalogue.sentences,
            materials.catalogue.row_format,
            batch_size=batch_size,
            generator=generator,
            examples=self.examples,
        )

    def terms(
        self,
        model: RecommenderModel,
        batch: SequenceBatch,
        layout: Tensor,
        materials: Shared,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The terms of L whose weight is not zero, by name: sequence, align, contrastive, collaborative (sec. 2.4)."""
        assert isinstance(model, DARec)
        losses = self.settings.losses
        moved = batch.to(layout.device)
        hidden = model.sequence_hidden(moved.rows, moved.users, moved.ends, layout)
        terms = {"sequence": item_cross_entropy(model.logits(hidden), moved.targets, losses.reduction)}
        if self.settings.model.variation is Variation.LLMREC:
            return terms
        sample = _contrastive_sample(batch, self.negatives, losses, generator)
        items = _alignment_items(batch, sample, losses, generator)
        if len(items):
            aligned = _align(model, materials, items, layout)
            if losses.align:
                terms["align"] = item_cross_entropy(model.logits(aligned), items.to(layout.device), losses.reduction)
            if sample is not None:
                terms["contrastive"] = _contrastive(hidden, aligned, items, sample, losses)
        if model.cf is not None and losses.collaborative and any(p.requires_grad for p in model.cf.parameters()):
            terms["collaborative"] = _collaborative(model, batch, materials, losses, generator)
        return terms

    @property
    def weights(self) -> dict[str, float]:
        """1, lambda_1, lambda_2 and lambda_3 (sec. 2.4)."""
        losses = self.settings.losses
        return {
            "sequence": 1.0,
            "align": losses.align,
            "contrastive": losses.contrastive,
            "collaborative": losses.collaborative,
        }

    def baseline_ranks(self, users: IntArray, histories: Sequence[IntArray], targets: IntArray) -> dict[str, IntArray]:
        if self.cf_state is None:
            return {}
        n_users, n_items = (len(self.cf_state[f"{side}.weight"]) for side in ("users", "items"))
        cf = build_collaborative(self.settings.model, n_users, n_items, generator_for("loading"))
        cf.load_state_dict(self.cf_state)
        name = "MF" if self.settings.model.collaborative is CollaborativeKind.MF else "NCF"
        return {name: encoder_ranks(FactorEncoder(cf, HISTORY_ITEMS), users, histories, targets)}


def pretrain_collaborative(
    settings: DARecStudy, development: Development, purchases: PurchaseIndex
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


def _contrastive_sample(
    batch: SequenceBatch, negatives: HardNegatives, losses: LossSettings, generator: torch.Generator
) -> ContrastiveSample | None:
    if not losses.contrastive:
        return None
    return sample_contrastive(
        batch,
        negatives,
        anchors_per_row=losses.anchors,
        negatives_per_anchor=losses.negatives,
        generator=generator,
    )


def _alignment_items(
    batch: SequenceBatch, sample: ContrastiveSample | None, losses: LossSettings, generator: torch.Generator
) -> Tensor:
    """The distinct items whose alignment rows are run: the batch's own (at most ``align_items``) and the contrastive ones."""
    parts = [torch.empty(0, dtype=torch.long)]
    if losses.align:
        own = batch.items[batch.items >= 0].unique()
        if losses.align_items is not None:
            own = own[torch.randperm(len(own), generator=generator)[: losses.align_items]]
        parts.append(own)
    if sample is not None:
        parts += [sample.positive, sample.negatives.flatten()]
    items: Tensor = torch.cat(parts).unique()
    return items


def _align(model: DARec, materials: Shared, items: Tensor, bits: Tensor) -> Tensor:
    alignment = materials.catalogue.item_rows
    rows, ends = alignment.select(items).to(bits.device), alignment.ends(items).to(bits.device)
    return model.alignment_hidden(rows, items.to(bits.device), ends, bits)


def _contrastive(
    hidden: Tensor, aligned: Tensor, items: Tensor, sample: ContrastiveSample, losses: LossSettings
) -> Tensor:
    """L_cl; ``aligned`` holds a row for each of the sorted ``items``."""
    anchor = (sample.row * hidden.shape[1] + sample.position).to(hidden.device)
    positive = torch.searchsorted(items, sample.positive).to(hidden.device)
    negative = torch.searchsorted(items, sample.negatives).to(hidden.device)
    embedding = torch.nn.functional.embedding  # its backward adds in a fixed order, where indexing's need not
    return contrastive_loss(
        embedding(anchor, hidden.flatten(0, 1)),
        embedding(positive, aligned),
        embedding(negative, aligned),
        temperature=losses.temperature,
        reduction=losses.reduction,
    )


def _collaborative(
    model: DARec, batch: SequenceBatch, materials: Shared, losses: LossSettings, generator: torch.Generator
) -> Tensor:
    """L_cf on the batch's own purchases, each against an item the user did not buy."""
    assert model.cf is not None
    real = batch.targets >= 0
    users = batch.users[:, None].expand_as(batch.targets)[real]
    negatives = materials.purchases.sample_negatives(users, generator)
    device = model.device
    users, bought, negatives = users.to(device), batch.targets[real].to(device), negatives.to(device)
    return bpr_loss(model.cf.scores(users, bought), model.cf.scores(users, negatives), losses.reduction)

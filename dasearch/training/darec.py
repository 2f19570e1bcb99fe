"""Training DARec: L_seq, L_align, L_cl and L_cf on users' rows (Liu et al. 2024, sec. 2.2 and 2.4)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dasearch.config import DARecStudy, LossSettings
from dasearch.data import (
    ContrastiveSample,
    Development,
    Examples,
    HardNegatives,
    IntArray,
    RowFormat,
    Rows,
    SequenceBatch,
    hard_negatives,
    mf_vectors,
    sample_contrastive,
    training_plan,
)
from dasearch.data.rows import HISTORY_ITEMS, NO_ITEM, PAD_SEGMENT
from dasearch.layout import Layout
from dasearch.models.attention import MaskMode
from dasearch.models.base import RecommenderModel, stacked
from dasearch.models.darec import (
    CFMode,
    CollaborativeKind,
    DARec,
    HeadStates,
    ItemIDs,
    Variation,
    build_collaborative,
)
from dasearch.models.id_encoders import FactorEncoder, IDEncoder
from dasearch.models.stacking import take
from dasearch.training.checkpoints import prefixed, under
from dasearch.training.encoders import encoder_ranks, study_encoder
from dasearch.training.losses import bpr_loss, contrastive_loss, item_cross_entropy, reduced
from dasearch.training.method import (
    SHARED_READS,
    Drawn,
    TrainingTask,
    kept,
    restored_examples,
    widened,
)
from dasearch.training.seeds import generator_for
from dasearch.training.shared import PurchaseIndex, Say, SharedInputs

WHITENED_ROWS, WHITENED_BATCHES = 32, 60
WHITENING_FLOOR = 1e-4  # share of the largest variance, so that directions of mere rounding noise are not amplified
ITEM_STEP = 32  # alignment rows of a batch are padded to multiples of it where shapes must repeat


@dataclass(frozen=True)
class DARecDrawn(Drawn):
    """The sampled inputs of DARec's losses for a batch; None for unused losses.

    Shapes: items ``(K, a)`` (-1 padding), their alignment rows' tokens and segments ``(K, a, m)`` and ends ``(K, a)``; row,
    position, positive, anchored (bool) ``(K, c)`` and negative ``(K, c, n_cl)`` of the anchors, positive and negative as
    indices into the items; unbought ``(K, B, n)``; kept_marks and kept_states ``(K, B, n, width)``: dropout factors (0, or
    one over the keep probability) of the vectors added at ``[SEQ]`` and of the states that the head reads.
    """

    items: Tensor | None = None
    tokens: Tensor | None = None
    segments: Tensor | None = None
    ends: Tensor | None = None
    row: Tensor | None = None
    position: Tensor | None = None
    positive: Tensor | None = None
    negative: Tensor | None = None
    anchored: Tensor | None = None
    unbought: Tensor | None = None
    kept_marks: Tensor | None = None
    kept_states: Tensor | None = None
    fills = {"items": NO_ITEM, "segments": PAD_SEGMENT}  # noqa: RUF012 (a class variable of the base)


class Whitening(NamedTuple):
    """A linear map ``map (state - mean)`` with unit variance in every direction; map ``(width, width)``, mean ``(width,)``."""

    mean: Tensor
    map: Tensor


@dataclass(frozen=True)
class DARecMethod(TrainingTask):
    """The training task of DARec: hard negatives, pre-trained CF vectors, whitening and an ID encoder, as configured."""

    settings: DARecStudy
    negatives: HardNegatives | None
    cf_state: dict[str, Tensor] | None
    whitening: Whitening | None
    has_fixed_shapes = True
    reads = (
        *SHARED_READS,
        "cf",
        "encoder",
        "model.collaborative",
        "model.ncf_embedding",
        "model.cf_width",
        "model.prompt_group",
        "model.item_ids",
        "model.head_states",
        "model.encoder_scores",
        "losses.contrastive",
    )

    @classmethod
    def prepare(cls, settings: DARecStudy, materials: SharedInputs, examples: Examples | None, say: Say) -> DARecMethod:
        """Find hard negatives and train the CF vectors, on training data only."""
        development, data = materials.development, settings.data
        negatives = cf_state = None
        if settings.losses.contrastive:
            say("finding hard negatives")
            rank = min(data.mf_rank, development.n_users, development.n_items)
            factors = torch.as_tensor(mf_vectors(development.train, development.n_items, rank=rank))
            texts = materials.text_vectors.cpu()
            negatives = hard_negatives(texts, factors, development.train, fraction=data.hard_negative_fraction)
        if settings.model.has_collaborative and settings.cf.epochs:
            say("training collaborative vectors")
            cf_state = pretrain_collaborative(settings, development, materials.purchases)
        whitening = None
        if settings.model.head_states is HeadStates.WHITENED:
            say("reading training rows with the frozen model")
            whitening = state_whitening(settings, materials)
        encoder = None
        if settings.reads_encoder:
            encoder = study_encoder(settings.encoder, materials, settings.seed, say)
        return cls(settings, encoder, examples, negatives, cf_state, whitening)

    def tensors(self) -> dict[str, Tensor]:
        """Hard negatives, CF parameters, whitening and examples, by prefixed name."""
        return {
            **prefixed("negatives", None if self.negatives is None else vars(self.negatives)),
            **prefixed("cf", self.cf_state),
            **prefixed("whitening", None if self.whitening is None else self.whitening._asdict()),
            **super().tensors(),
        }

    @classmethod
    def restored(cls, settings: DARecStudy, encoder: IDEncoder | None, tensors: Mapping[str, Tensor]) -> DARecMethod:
        """The task with these `tensors`."""
        negatives, whitening = under("negatives", tensors), under("whitening", tensors)
        return cls(
            settings,
            encoder,
            restored_examples(tensors),
            HardNegatives(**negatives) if negatives else None,
            under("cf", tensors) or None,
            Whitening(**whitening) if whitening else None,
        )

    def start(self, model: DARec, materials: SharedInputs, generator: torch.Generator) -> None:
        """Initialise whitening, head, item IDs and CF parameters from the prepared inputs."""
        settings = self.settings.model
        if self.whitening is not None and settings.head_states is HeadStates.WHITENED:
            model.state_mean.copy_(self.whitening.mean)
            model.state_map.copy_(self.whitening.map)
        model.start_head(materials.item_counts.to(materials.device), materials.text_vectors.to(materials.device))
        if self.encoder is not None and settings.item_ids is ItemIDs.ENCODER:
            items = torch.arange(materials.development.n_items, device=materials.device)
            model.start_item_ids(self.encoder.item_embedding(items), generator)
        if model.cf is not None and self.cf_state is not None:
            model.cf.load_state_dict(self.cf_state)

    @property
    def reads_padding(self) -> bool:
        """True if masks act after the softmax, where padding changes the normaliser."""
        return self.settings.model.mask_mode is MaskMode.POST_SOFTMAX

    def draw(self, batch: SequenceBatch, materials: SharedInputs, generator: torch.Generator) -> DARecDrawn:
        """Sample anchors of L_cl, items of L_align, and for each term of L_cf an item that the user did not buy."""
        losses = self.settings.losses
        if self.settings.model.variation is Variation.LLMREC:
            return self._with_dropout(DARecDrawn(), batch, materials, generator)
        sample = _contrastive_sample(batch, self.negatives, losses, generator)
        items = _alignment_items(batch, sample, losses, generator)
        sampled = _drawn_rows(materials, items) if len(items) else DARecDrawn()
        if sample is not None:
            sampled = dataclasses.replace(
                sampled,
                row=sample.row[None],
                position=sample.position[None],
                positive=torch.searchsorted(items, sample.positive)[None],
                negative=torch.searchsorted(items, sample.negatives)[None],
                anchored=torch.ones_like(sample.row, dtype=torch.bool)[None],
            )
        if self.learns_collaborative:
            users = batch.users[:, None].expand_as(batch.targets)
            unbought = materials.purchases.sample_negatives(users.flatten(), generator).view_as(users)
            sampled = dataclasses.replace(sampled, unbought=unbought[None])
        return self._with_dropout(sampled, batch, materials, generator)

    def _with_dropout(
        self, drawn: DARecDrawn, batch: SequenceBatch, materials: SharedInputs, generator: torch.Generator
    ) -> DARecDrawn:
        model = self.settings.model
        if not model.dropout:
            return drawn
        shape = (1, *batch.items.shape, materials.catalogue.backbone.width)
        marks = None if model.item_ids is ItemIDs.NONE else kept(shape, model.dropout, generator)
        return dataclasses.replace(drawn, kept_marks=marks, kept_states=kept(shape, model.dropout, generator))

    def fixed(self, batch: SequenceBatch, drawn: Drawn, row_format: RowFormat) -> tuple[SequenceBatch, Drawn]:
        """The batch padded to the longest row, and its alignment items and anchors to fixed multiples."""
        assert isinstance(drawn, DARecDrawn)
        wide = batch.widened(row_format.max_items, row_format.history_items)
        parts: dict[str, Tensor | None] = {}
        for name in (f.name for f in dataclasses.fields(drawn)):
            part: Tensor | None = getattr(drawn, name)
            if part is not None and name in ("unbought", "kept_marks", "kept_states"):
                part = widened(part, 2, row_format.max_items, 0)
            elif part is not None:
                step = ITEM_STEP if name in ("items", "tokens", "segments", "ends") else len(batch.users)
                part = widened(part, 1, -(-part.shape[1] // step) * step, DARecDrawn.fills.get(name, 0))
            parts[name] = part
        return wide, DARecDrawn(**parts)

    @property
    def learns_collaborative(self) -> bool:
        """Whether L_cf is part of the loss."""
        model = self.settings.model
        joint = model.has_collaborative and model.cf_mode is CFMode.JOINT
        return joint and self.settings.losses.collaborative > 0

    def drawn_losses(
        self, model: RecommenderModel, batch: SequenceBatch, drawn: Drawn, layout: Tensor, materials: SharedInputs
    ) -> dict[str, Tensor]:
        """The terms sequence, align, contrastive and collaborative (sec. 2.4), each ``(K,)``."""
        assert isinstance(model, DARec)
        assert isinstance(drawn, DARecDrawn)
        losses, k = self.settings.losses, stacked(layout) or 1
        marks, states = (None if part is None else part.flatten(0, 1) for part in (drawn.kept_marks, drawn.kept_states))
        hidden = model.sequence_hidden(batch, layout, marks)
        targets = batch.targets.view(k, -1)
        terms = {"sequence": item_cross_entropy(_of_each(model.logits(hidden, states), k), targets, losses.reduction)}
        if drawn.items is not None:
            aligned = _align(model, drawn, layout)
            if losses.align:
                terms["align"] = item_cross_entropy(_of_each(model.logits(aligned), k), drawn.items, losses.reduction)
            if drawn.row is not None:
                terms["contrastive"] = _contrastive(hidden, aligned, drawn, losses)
        if drawn.unbought is not None:
            terms["collaborative"] = _collaborative(model, batch, drawn.unbought, losses)
        return terms

    @property
    def weights(self) -> dict[str, float]:
        """The weights 1, lambda_1, lambda_2 and lambda_3 of the terms (sec. 2.4)."""
        losses = self.settings.losses
        return {
            "sequence": 1.0,
            "align": losses.align,
            "contrastive": losses.contrastive,
            "collaborative": losses.collaborative,
        }

    def baseline_ranks(self, users: IntArray, histories: Sequence[IntArray], targets: IntArray) -> dict[str, IntArray]:
        """Ranks by the ID encoder and by the pre-trained CF model, if there are any."""
        ranks = super().baseline_ranks(users, histories, targets)
        if self.cf_state is None:
            return ranks
        n_users, n_items = (len(self.cf_state[f"{side}.weight"]) for side in ("users", "items"))
        cf = build_collaborative(self.settings.model, n_users, n_items, generator_for("loading"))
        cf.load_state_dict(self.cf_state)
        name = "MF" if self.settings.model.collaborative is CollaborativeKind.MF else "NCF"
        return {**ranks, name: encoder_ranks(FactorEncoder(cf, HISTORY_ITEMS), users, histories, targets)}


@torch.no_grad()  # not inference mode, in which sharded layers cannot become part of a model
def state_whitening(settings: DARecStudy, materials: SharedInputs) -> Whitening:
    """Mean and principal directions of the frozen model's states at ``[SEQ]``, over training rows.

    Frozen states are nearly collinear (three quarters of their energy is in the mean), which makes a linear head learn slowly;
    whitening as in Su et al. 2021, https://arxiv.org/abs/2103.15316.
    """
    plain = {"variation": Variation.LLMREC, "item_ids": ItemIDs.NONE, "head_states": HeadStates.PLAIN}
    model = DARec(
        materials.catalogue.backbone,
        settings.model.model_copy(update=plain),
        n_users=1,
        n_items=1,
        generator=generator_for(settings.seed, "whitening"),
    ).to(materials.device)
    layout = model.layout_tensor(Layout.all_serial(len(model.replaced)))
    generator = generator_for(settings.seed, "whitening", "rows")
    sentences, row_format = materials.catalogue.row_sentences, materials.catalogue.row_format
    plan = training_plan(materials.development, sentences, row_format, None)
    states = []
    for batch in itertools.islice(plan.shuffled(WHITENED_ROWS, generator), WHITENED_BATCHES):
        hidden = model.sequence_hidden(batch.to(materials.device), layout)
        states.append(hidden[batch.items.to(materials.device) != NO_ITEM].double().cpu())
    rows = torch.cat(states)
    mean = rows.mean(0)
    values, directions = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    values = values.clamp(min=0)
    scale = (values + WHITENING_FLOOR * values.max()).rsqrt()
    return Whitening(mean.float(), (directions * scale).T.float())


def pretrain_collaborative(
    settings: DARecStudy, development: Development, purchases: PurchaseIndex
) -> dict[str, Tensor]:
    """CF parameters trained on training purchases only, by BPR with one uniform negative (DARec sec. 2.3.2)."""
    generator = generator_for(settings.seed, "collaborative")
    model = build_collaborative(settings.model, development.n_users, development.n_items, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.cf.lr, weight_decay=settings.cf.weight_decay)
    users, items = purchases.pairs()
    for _ in range(settings.cf.epochs):
        for batch in torch.randperm(len(users), generator=generator).split(settings.cf.batch_size):
            negatives = purchases.sample_negatives(users[batch], generator)
            loss = bpr_loss(model.scores(users[batch], items[batch]), model.scores(users[batch], negatives)).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _contrastive_sample(
    batch: SequenceBatch, negatives: HardNegatives | None, losses: LossSettings, generator: torch.Generator
) -> ContrastiveSample | None:
    if not losses.contrastive:
        return None
    assert negatives is not None
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
    """The distinct items with an alignment row: the batch's own (at most ``align_items``) and the contrastive ones."""
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


def _drawn_rows(materials: SharedInputs, items: Tensor) -> DARecDrawn:
    alignment = materials.catalogue.item_rows
    rows = alignment.select(items)
    ends = alignment.ends(items)
    return DARecDrawn(items=items[None], tokens=rows.tokens[None], segments=rows.segments[None], ends=ends[None])


def _of_each(values: Tensor, k: int) -> Tensor:
    """Values grouped by candidate: ``(K * B, ..., width)`` -> ``(K, B * ..., width)``."""
    return values.reshape(k, -1, values.shape[-1])


def _align(model: DARec, drawn: DARecDrawn, layout: Tensor) -> Tensor:
    """States of the ``[ALIGN]`` tokens of all candidates' alignment rows, ``(K * items, width)``."""
    assert drawn.items is not None
    assert drawn.tokens is not None
    assert drawn.segments is not None
    assert drawn.ends is not None
    rows = Rows(drawn.tokens.flatten(0, 1), drawn.segments.flatten(0, 1))
    return model.alignment_hidden(rows, drawn.items.flatten().clamp(min=0), drawn.ends.flatten(), layout)


def _contrastive(hidden: Tensor, aligned: Tensor, drawn: DARecDrawn, losses: LossSettings) -> Tensor:
    """L_cl of every candidate; ``aligned`` has a row for each of its sorted items."""
    assert drawn.items is not None
    assert drawn.row is not None
    assert drawn.position is not None
    assert drawn.positive is not None
    assert drawn.negative is not None
    assert drawn.anchored is not None
    k, count = drawn.items.shape
    candidate = torch.arange(k, device=hidden.device)
    rows = candidate[:, None] * (len(hidden) // k) + drawn.row
    first = candidate[:, None] * count  # first aligned item of each candidate
    values = contrastive_loss(
        take(hidden.flatten(0, 1), rows * hidden.shape[1] + drawn.position),
        take(aligned, first + drawn.positive),
        take(aligned, first[..., None] + drawn.negative),
        temperature=losses.temperature,
    )
    return reduced(values, drawn.anchored, losses.reduction)


def _collaborative(model: DARec, batch: SequenceBatch, unbought: Tensor, losses: LossSettings) -> Tensor:
    """L_cf of every candidate on its own purchases, each against an item that the user did not buy."""
    assert model.cf is not None
    bought = batch.targets.clamp(min=0)
    users = batch.users[:, None].expand_as(bought)
    values = bpr_loss(model.cf.scores(users, bought), model.cf.scores(users, unbought.view_as(bought)))
    k = len(unbought)
    return reduced(values.view(k, -1), (batch.targets >= 0).view(k, -1), losses.reduction)

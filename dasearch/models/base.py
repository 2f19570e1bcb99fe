"""The interface of all recommenders for training, evaluation and saving, and the item head of DARec and IDLE-Adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dasearch.data import ItemRows, SequenceBatch
from dasearch.errors import LayoutError
from dasearch.layout import SITES, Layout, ModelKind, replaced_layers, require_lora_sites
from dasearch.models.adapters import AdapterSettings
from dasearch.models.backbone import Block, FrozenBackbone
from dasearch.models.id_encoders import IDEncoder
from dasearch.models.stacking import Linear, per_row

HEAD_SD = 0.02  # of a head's initial rows, as in OPT
Scorer = Callable[[Tensor], Tensor]  # states (batch, width) -> scores (batch, items)


class HeadBias(StrEnum):
    """Initialisation of the item head's bias."""

    LOG_FREQUENCY = "log-frequency"
    ZERO = "zero"


class HeadRows(StrEnum):
    """Initialisation of the item head's rows: frozen text vectors, normal, or zero."""

    TEXT = "text"
    NORMAL = "normal"
    ZERO = "zero"


class ParameterGroup(StrEnum):
    """Groups of trained parameters that may have their own learning rate."""

    ADAPTERS = "adapters"  # modules added to layers: adapters, LoRA, router; or prefixes
    IDS = "ids"  # item vectors, or the map from an encoder's vectors to them
    CF = "cf"  # the collaborative model
    HEAD = "head"  # the item head


class RecommenderModel(nn.Module):
    """A frozen backbone and trained modules, with the layout as an argument of every forward pass.

    Args:
        backbone: the frozen language model, shared by every recommender of a study.
        settings: the model's settings; ``encoder_scores`` is the weight of the encoder's scores added to the model's.
        n_items: size of the catalogue.
        replace_every: replacement frequency r (DARec fig. 10).
        encoder: a trained ID encoder, which is frozen and in evaluation mode.

    Examples:
        >>> import torch
        >>> from dasearch import Layout
        >>> from dasearch.models import DARec
        >>> from dasearch.models.darec import DARecSettings
        >>> from dasearch.models.examples import tiny_backbone
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = DARec(tiny_backbone(), DARecSettings(bottleneck=4), n_users=3, n_items=5, generator=generator)
        >>> model.layout_tensor(Layout.parse("SPS-PPS")).shape
        torch.Size([2, 3, 3])
    """

    kind: ModelKind
    has_lora = False  # whether layouts may choose LoRA
    groups: ClassVar[dict[ParameterGroup, tuple[str, ...]]]  # submodules in each group; others belong to none
    recompute = False  # whether activations are recomputed in the backward pass (gradient checkpointing)

    def __init__(
        self,
        backbone: FrozenBackbone,
        settings: Any,
        *,
        n_items: int,
        replace_every: int,
        encoder: IDEncoder | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, settings
        self.encoder = None if encoder is None else encoder.eval().requires_grad_(False)
        self.n_items = n_items
        self.replaced = replaced_layers(len(backbone.blocks), replace_every)

    def states(self, batch: SequenceBatch, layout: Tensor) -> Tensor:
        """The state that predicts the item after each row's history: ``(batch, width)``.

        ``layout`` is as of `layout_tensor`, or as of `layout_tensors` if the trained parameters are those of K candidates
        (`dasearch.models.stacking`); there are then K times as many rows, candidate by candidate.
        """
        raise NotImplementedError

    def scorer(self, item_rows: ItemRows, layout: Tensor) -> Scorer:
        """A function from states to scores of every item; computations shared by all users are done once, here."""
        raise NotImplementedError

    def encoder_scores(self, users: Tensor, histories: Tensor) -> Tensor | None:
        """The ID encoder's contribution to the scores, ``(batch, items)``, or None; used in evaluation, not in training.

        A product of independently trained experts: adding logits multiplies the odds that each gives to an item.

        Shapes: as of `dasearch.models.id_encoders.base`.
        """
        weight = self.settings.encoder_scores
        return weight * self.encoder.scores(users, histories) if self.encoder is not None and weight else None

    def train(self, mode: bool = True) -> Self:
        """Set the mode as usual, but keep the ID encoder in evaluation mode."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def fit_cold_start(self, users: Tensor, sequences: Sequence[Tensor]) -> None:
        """Fit what is needed to score users outside the training data (user -1 in a batch); by default nothing."""

    def compile_layers(self) -> None:
        """Compile the computation shared by all layers with torch.compile, if the model supports it."""

    def layer_states(self, block: Block, layer: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
        """Output of ``layer``, computed with ``block``; with ``recompute`` activations are recomputed in the backward pass."""
        if self.recompute and torch.is_grad_enabled():
            layer = partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
        return block.through(layer, *inputs, **options)

    @property
    def device(self) -> torch.device:
        """The device of the trained parameters."""
        return next(iter(self.own_tensors().values())).device

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trained parameter with its name."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def group_of(self, name: str) -> ParameterGroup | None:
        """The group of a trained parameter, by its name."""
        part = name.partition(".")[0]
        return next((group for group, parts in self.groups.items() if part in parts), None)

    def own_tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers except the frozen backbone's: the contents of a saved model."""
        frozen = {id(tensor) for tensor in (*self.backbone.parameters(), *self.backbone.buffers())}
        return {n: t for n, t in (*self.named_parameters(), *self.named_buffers()) if id(t) not in frozen}

    def layout_tensor(self, layout: Layout, columns: int | None = None) -> Tensor:
        """The layout as a tensor for ``forward``, on the model's device; ``columns`` as of `Layout.tensor`.

        Raises:
            LayoutError: for another shape, or a choice that this model does not support.
        """
        layout.require(len(self.replaced), len(SITES[self.kind]))
        self.require_choices(layout)
        return layout.tensor(columns=columns, device=self.device)

    def require_choices(self, layout: Layout) -> None:
        """Reject choices that this model does not support.

        Raises:
            LayoutError: naming the choice.
        """
        require_lora_sites(layout, SITES[self.kind])
        if layout.has_lora and not self.has_lora:
            raise LayoutError(f"{layout} has LoRA and the model was built without; build it with lora=True")
        for choice in layout.choices if isinstance(self.settings, AdapterSettings) else ():
            reason = self.settings.too_wide(choice)
            if reason is not None:
                raise LayoutError(f"choice {choice.name!r} {reason}")

    def layout_tensors(self, layouts: Sequence[Layout]) -> Tensor:
        """Several candidates' layouts, stacked: ``(K, layers, sites, k)``, with k the largest number of columns needed."""
        columns = max(layout.columns for layout in layouts)
        return torch.stack([self.layout_tensor(layout, columns) for layout in layouts])

    def inactive(self, layout: Layout) -> dict[str, Tensor]:
        """Masks of the trained numbers that the layout leaves unused: bool, with the parameters' shapes, by their names."""
        return {}

    def count_trained(self, layout: Layout) -> int:
        """Number of trained parameters in use under a layout."""
        unused = sum(int(mask.sum()) for mask in self.inactive(layout).values())
        return sum(parameter.numel() for _, parameter in self.trainable()) - unused

    def multiply_adds(self, layout: Layout, *, item_tokens: int) -> int:
        """Multiply-adds per token that the layout adds to the frozen layers; 0 for models whose layouts cost the same.

        Each weight of a layer's trained linear maps counts once: ``2 d u`` for an adapter of u units over width d. Biases, norms
        and activations are not counted, nor are costs per row, such as the projection of its key.

        Args:
            layout: the layout whose cost is counted.
            item_tokens: tokens of an item's sentence, without its ``[SEQ]``.
        """
        unused = self.inactive(layout)
        weights = (one for one in self.trainable() if one[0].startswith("layers.") and one[1].dim() == 2)
        return sum(w.numel() - (int(unused[name].sum()) if name in unused else 0) for name, w in weights)

    def active_tensors(self, layout: Layout) -> dict[str, Tensor]:
        """`own_tensors` without the entries that the layout leaves unused, which are always trailing."""
        used = {name: ~mask for name, mask in self.inactive(layout).items()}
        tensors = {name: t[_used_part(used[name])] if name in used else t for name, t in self.own_tensors().items()}
        return {name: tensor for name, tensor in tensors.items() if tensor.numel() or name not in used}

    @torch.no_grad()
    def load_active(self, tensors: Mapping[str, Tensor], layout: Layout) -> None:
        """Load `active_tensors`; entries that the layout leaves unused are set to zero.

        Raises:
            ValueError: if names or shapes do not match.
        """
        own, used = self.own_tensors(), {name: ~mask for name, mask in self.inactive(layout).items()}
        wanted = {name for name in own if name not in used or used[name].any()}
        if wanted != set(tensors):
            raise ValueError(f"model.safetensors lacks or adds {sorted(wanted ^ set(tensors))[0]}")
        for name in used:
            own[name].zero_()
        for name, tensor in tensors.items():
            part = own[name][_used_part(used[name])] if name in used else own[name]
            if part.shape != tensor.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)} and the model {tuple(part.shape)}")
            part.copy_(tensor)


def _used_part(used: Tensor) -> tuple[slice, ...]:
    """Slices of the leading part of each dimension that contains all used entries."""
    others = ([other for other in range(used.dim()) if other != dim] for dim in range(used.dim()))
    return tuple(slice(int(used.sum(dim=rest).bool().sum()) if rest else int(used.sum())) for rest in others)


@torch.no_grad()
def start_head(
    head: nn.Linear, item_counts: Tensor, text_vectors: Tensor, *, bias: HeadBias, rows: HeadRows, sd: float
) -> None:
    """Initialise an item head according to ``bias`` and ``rows``; ``sd`` is that of the normal initialisation.

    Shapes: item_counts ``(items,)`` of training events, text_vectors ``(items, width)`` of the frozen model.
    """
    if bias is HeadBias.LOG_FREQUENCY:
        head.bias.copy_(log_frequency(item_counts))
    if rows is HeadRows.ZERO:
        head.weight.zero_()
    elif rows is HeadRows.TEXT:
        centred = text_vectors - text_vectors.mean(0)
        scale = sd / centred.std().clamp(
            min=1e-6
        )  # the same scale as the normal initialisation, so that only directions differ
        head.weight.copy_(centred * scale)


def centred_directions(text_vectors: Tensor) -> Tensor:
    """Text vectors minus their mean, normalised to unit length: ``(items, width)``."""
    centred = text_vectors - text_vectors.mean(0)
    directions: Tensor = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return directions


def log_frequency(item_counts: Tensor) -> Tensor:
    """Log share of each item among training events, with add-one smoothing so that unseen items stay finite."""
    return ((item_counts + 1.0) / (item_counts + 1.0).sum()).log()


def layer_gates(layout: Tensor, rows: int) -> Tensor:
    """A layout's numbers, broadcast for use in layers.

    Shapes: layout ``(layers, sites, k)`` -> the same; of K candidates ``(K, layers, sites, k)``
    -> ``(layers, sites, k, rows, 1, 1)``, each row with its candidate's numbers.
    """
    if stacked(layout) is None:
        return layout
    return per_row(layout, rows).permute(1, 2, 3, 0)[..., None, None]


def stacked(layout: Tensor) -> int | None:
    """K for stacked layouts ``(K, layers, sites, k)``; None for a single layout ``(layers, sites, k)``."""
    return len(layout) if layout.dim() == 4 else None


def new_linear(inputs: int, outputs: int, generator: torch.Generator) -> Linear:
    """A linear map with Glorot uniform weights and zero bias."""
    layer = Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer

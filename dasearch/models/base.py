"""What training, evaluation and saving ask of every recommender, and the item head that DARec and IDLE-Adapter share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dasearch.data import ItemRows, SequenceBatch
from dasearch.errors import LayoutError
from dasearch.layout import SITES, Layout, ModelKind, replaced_layers, require_lora_sites
from dasearch.models.adapters import AdapterSettings
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.id_encoders import IDEncoder
from dasearch.models.stacking import Linear, per_row

HEAD_SD = 0.02  # of a head's rows at the start: OPT's own
Scorer = Callable[[Tensor], Tensor]  # states (batch, width) -> scores (batch, items)


class HeadBias(StrEnum):
    """What the item head's bias starts from."""

    LOG_FREQUENCY = "log-frequency"
    ZERO = "zero"


class HeadRows(StrEnum):
    """What the item head's rows start from: frozen text vectors, normal numbers, or zero."""

    TEXT = "text"
    NORMAL = "normal"
    ZERO = "zero"


class ParameterGroup(StrEnum):
    """Trained parameters that may learn at a rate of their own."""

    ADAPTERS = "adapters"  # what layers are given: adapters, LoRA, router; or prefixes
    IDS = "ids"  # the vectors of items, or the map from known ones to them
    CF = "cf"  # the collaborative model
    HEAD = "head"  # what scores items by a state


class RecommenderModel(nn.Module):
    """A frozen backbone, trained parts, and a layout that is an argument of every forward pass.

    Args:
        backbone: shared by every recommender of a study.
        settings: the model's own; ``encoder_scores`` is the weight of the encoder's scores beside the model's.
        n_items: size of the catalogue.
        replace_every: replacement frequency r (DARec fig. 10).
        encoder: a trained ID encoder, which stays as it is, in evaluation mode.

    Examples:
        >>> import torch
        >>> from transformers import OPTConfig, OPTModel
        >>> from dasearch import Layout
        >>> from dasearch.models import DARec
        >>> from dasearch.models.backbone import FrozenBackbone
        >>> from dasearch.models.darec import DARecSettings
        >>> sizes = {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 16, "num_attention_heads": 2}
        >>> backbone = FrozenBackbone(OPTModel(OPTConfig(vocab_size=20, num_hidden_layers=2, **sizes)), name="tiny")
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = DARec(backbone, DARecSettings(bottleneck=4), n_users=3, n_items=5, generator=generator)
        >>> model.layout_tensor(Layout.parse("SPS-PPS")).shape
        torch.Size([2, 3, 3])
    """

    kind: ModelKind
    has_lora = False  # whether layouts may choose LoRA
    groups: ClassVar[dict[ParameterGroup, tuple[str, ...]]]  # the model's parts in each; others are in none
    recompute = False  # whether a layer's activations are computed again in the backward rather than kept

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

        Layout as `layout_tensor` gives it, or `layout_tensors` where the trained parameters are those of K candidates (see
        `dasearch.models.stacking`) and the rows K times as many, candidate by candidate.
        """
        raise NotImplementedError

    def scorer(self, item_rows: ItemRows, layout: Tensor) -> Scorer:
        """Scores of every item for states; what is the same for all users is computed here, once."""
        raise NotImplementedError

    def encoder_scores(self, users: Tensor, histories: Tensor) -> Tensor | None:
        """What an ID encoder adds to the scores, ``(batch, items)``; None where nothing is added. Training knows nothing of it.

        A product of experts that were trained apart: added logits multiply the odds that each gives to an item.

        Shapes: as of `dasearch.models.id_encoders.base`.
        """
        weight = self.settings.encoder_scores
        return weight * self.encoder.scores(users, histories) if self.encoder is not None and weight else None

    def train(self, mode: bool = True) -> Self:
        """The ID encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def fit_cold_start(self, users: Tensor, sequences: Sequence[Tensor]) -> None:
        """Learn what is needed to score users outside the training data (users -1 of a batch), if anything is."""

    def compile_layers(self) -> None:
        """Let torch.compile make one body of what all layers compute, where the model has such a one."""

    def layer_states(self, layer: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
        """What a layer makes of its inputs, kept for the backward or computed again there."""
        if self.recompute and torch.is_grad_enabled():
            found: Tensor = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
            return found
        return layer(*inputs, **options)

    @property
    def device(self) -> torch.device:
        """Where the trained parts are."""
        return next(iter(self.own_tensors().values())).device

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trained parameter with its name."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def group_of(self, name: str) -> ParameterGroup | None:
        """The group of a trained parameter, by its name."""
        part = name.partition(".")[0]
        return next((group for group, parts in self.groups.items() if part in parts), None)

    def own_tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers but the frozen backbone's: what a saved model consists of."""
        frozen = {id(tensor) for tensor in (*self.backbone.parameters(), *self.backbone.buffers())}
        return {n: t for n, t in (*self.named_parameters(), *self.named_buffers()) if id(t) not in frozen}

    def layout_tensor(self, layout: Layout, columns: int | None = None) -> Tensor:
        """The layout as ``forward`` reads it, on the model's device; ``columns`` as of `Layout.tensor`.

        Raises:
            LayoutError: for another shape, or a choice that this model does not have.
        """
        layout.require(len(self.replaced), len(SITES[self.kind]))
        self.require_choices(layout)
        return layout.tensor(columns=columns, device=self.device)

    def require_choices(self, layout: Layout) -> None:
        """Refuse a choice that this model does not have.

        Raises:
            LayoutError: for it, by its name.
        """
        require_lora_sites(layout, SITES[self.kind])
        if layout.has_lora and not self.has_lora:
            raise LayoutError(f"{layout} has LoRA and the model was built without; build it with lora=True")
        for choice in layout.choices if isinstance(self.settings, AdapterSettings) else ():
            reason = self.settings.too_wide(choice)
            if reason is not None:
                raise LayoutError(f"choice {choice.name!r} {reason}")

    def layout_tensors(self, layouts: Sequence[Layout]) -> Tensor:
        """Several candidates' layouts side by side: ``(K, layers, sites, k)``, k of the one that needs most."""
        columns = max(layout.columns for layout in layouts)
        return torch.stack([self.layout_tensor(layout, columns) for layout in layouts])

    def inactive(self, layout: Layout) -> dict[str, Tensor]:
        """Which numbers of trained parameters the layout leaves unused, bool of their shapes, by the names of the parameters."""
        return {}

    def count_trained(self, layout: Layout) -> int:
        """How many numbers are trained under a layout."""
        unused = sum(int(mask.sum()) for mask in self.inactive(layout).values())
        return sum(parameter.numel() for _, parameter in self.trainable()) - unused

    def multiply_adds(self, layout: Layout, *, item_tokens: int) -> int:
        """Of a token, how many multiply-adds the layout adds to the frozen layers; 0 where layouts do not differ in them.

        Each weight of a layer's own linear maps multiplies once: ``2 d u`` of an adapter of u units over width d. Not counted are
        biases, norms and activations, and what a row has once, such as its key's projection.

        Args:
            item_tokens: of an item's sentence, without its ``[SEQ]``.
        """
        unused = self.inactive(layout)
        weights = (one for one in self.trainable() if one[0].startswith("layers.") and one[1].dim() == 2)
        return sum(w.numel() - (int(unused[name].sum()) if name in unused else 0) for name, w in weights)

    def active_tensors(self, layout: Layout) -> dict[str, Tensor]:
        """`own_tensors` less what the layout leaves unused, which always stands at the end of a dimension."""
        used = {name: ~mask for name, mask in self.inactive(layout).items()}
        found = {name: t[_used_part(used[name])] if name in used else t for name, t in self.own_tensors().items()}
        return {name: tensor for name, tensor in found.items() if tensor.numel() or name not in used}

    @torch.no_grad()
    def load_active(self, tensors: Mapping[str, Tensor], layout: Layout) -> None:
        """Take over `active_tensors`; what the layout leaves unused becomes zero.

        Raises:
            ValueError: for other names or shapes.
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
    """The leading part of every dimension that holds all used numbers."""
    others = ([other for other in range(used.dim()) if other != dim] for dim in range(used.dim()))
    return tuple(slice(int(used.sum(dim=rest).bool().sum()) if rest else int(used.sum())) for rest in others)


@torch.no_grad()
def start_head(
    head: nn.Linear, item_counts: Tensor, text_vectors: Tensor, *, bias: HeadBias, rows: HeadRows, sd: float
) -> None:
    """Start an item head where ``bias`` and ``rows`` say; ``sd`` is that of its normal start.

    Shapes: item_counts ``(items,)`` of training events, text_vectors ``(items, width)`` of the frozen model.
    """
    if bias is HeadBias.LOG_FREQUENCY:
        head.bias.copy_(log_frequency(item_counts))
    if rows is HeadRows.ZERO:
        head.weight.zero_()
    elif rows is HeadRows.TEXT:
        centred = text_vectors - text_vectors.mean(0)
        scale = sd / centred.std().clamp(min=1e-6)  # as large as the normal start, so that only directions differ
        head.weight.copy_(centred * scale)


def centred_directions(text_vectors: Tensor) -> Tensor:
    """Text vectors less their mean, each of length one: ``(items, width)``."""
    centred = text_vectors - text_vectors.mean(0)
    directions: Tensor = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return directions


def log_frequency(item_counts: Tensor) -> Tensor:
    """Log share of each item among training events; one event more each, so that an unseen item stays finite."""
    return ((item_counts + 1.0) / (item_counts + 1.0).sum()).log()


def layer_gates(layout: Tensor, rows: int) -> Tensor:
    """A layout's choices as layers read them.

    Shapes: layout ``(layers, sites, k)`` -> the same; of K candidates ``(K, layers, sites, k)``
    -> ``(layers, sites, k, rows, 1, 1)``, at each row its candidate's.
    """
    if stacked(layout) is None:
        return layout
    return per_row(layout, rows).permute(1, 2, 3, 0)[..., None, None]


def stacked(layout: Tensor) -> int | None:
    """K of ``(K, layers, sites, k)``; None for one candidate's ``(layers, sites, k)``."""
    return len(layout) if layout.dim() == 4 else None


def new_linear(inputs: int, outputs: int, generator: torch.Generator) -> Linear:
    """A linear map with Glorot's uniform start and no offset."""
    layer = Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer

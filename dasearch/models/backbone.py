"""Frozen Hugging Face decoders and encoders, opened up just enough to compute the attention product ourselves.

A block projects queries, keys and values once; DARec attends with them under the causal and the context mask
(Liu et al. 2024, sec. 2.3.3 and app. C), IDLE-Adapter and RA-Rec with additional keys and values prepended. All other
computation is done by the frozen modules themselves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from dasearch.errors import BackboneError
from dasearch.models.attention import Keys, Projected, attend, attend_causally
from dasearch.models.stacking import gather_tokens, linear


class AttentionScale(StrEnum):
    """The factor applied to products of queries and keys."""

    HEAD = "head"  # 1 / sqrt(d_h), as in the frozen model's training
    MODEL = "model"  # 1 / sqrt(d_LLM), as printed in the paper


class Block(nn.Module):
    """One frozen layer; subclasses map the parts of their model family."""

    layer: Any  # a Hugging Face layer, whose attribute names depend on the family

    def __init__(self, layer: nn.Module, config: transformers.PretrainedConfig, scale: AttentionScale) -> None:
        super().__init__()
        self.layer = layer
        self.heads = int(config.num_attention_heads)
        self.head_width = int(getattr(config, "head_dim", None) or config.hidden_size // self.heads)
        self.scale = 1 / math.sqrt(self.head_width if scale is AttentionScale.HEAD else config.hidden_size)

    def forward(self, hidden: Tensor, positions: Positions, mask: Tensor | None = None) -> Tensor:
        """The unmodified layer, for rows padded on the right; ``mask`` None is causal."""
        projected = self.project(self.norm1(hidden), positions)
        attended = attend_causally(projected) if mask is None else attend(projected, mask)
        return self.finish(hidden, self.output(attended))

    def through(self, layer: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
        """``layer(*inputs, **options)``, a computation with this block's weights, which are gathered for it if sharded."""
        return layer(*inputs, **options)

    def norm1(self, hidden: Tensor) -> Tensor:
        """The attention's input, from the layer's input."""
        raise NotImplementedError

    def finish(self, hidden: Tensor, attention: Tensor) -> Tensor:
        """The layer's output, from its input and the attention's output."""
        raise NotImplementedError

    def output(self, attended: Tensor) -> Tensor:
        """The attention's output projection."""
        raise NotImplementedError

    def project(self, normed: Tensor, positions: Positions, at: Tensor | None = None) -> Projected:
        """Keys and values of every token, and queries of every token or only of those at ``at``.

        Shapes: normed ``(batch, tokens, width)``, at ``(batch, n)``.
        """
        chosen = normed if at is None else gather_tokens(normed, at)
        queries = self.project_queries(chosen, positions if at is None else positions.at(at))
        return Projected(queries, *self.project_keys(normed, positions))

    def project_queries(self, normed: Tensor, positions: Positions) -> Tensor:
        """Scaled queries. Shapes: normed ``(batch, tokens, width)`` -> ``(batch, heads, tokens, head width)``."""
        raise NotImplementedError

    def project_keys(self, normed: Tensor, positions: Positions | None) -> Keys:
        """Keys and values. Shapes: normed ``(batch, tokens, width)``; ``positions`` None: no position (collaborative keys)."""
        raise NotImplementedError

    def project_key(self, vectors: Tensor) -> Keys:
        """Collaborative keys, without positions. Shapes: vectors ``(batch, width)`` or ``(batch, n, width)``."""
        return self.project_keys(self.norm1(vectors[:, None] if vectors.dim() == 2 else vectors), None)

    def _heads(self, projected: Tensor) -> Tensor:
        """Split heads: ``(batch, tokens, ...)`` -> ``(batch, heads, tokens, head width)``, or unchanged order without a batch."""
        split: Tensor = projected.unflatten(-1, (-1, self.head_width))
        return split.transpose(1, 2) if projected.dim() == 3 else split


class DecoderBlock(Block):
    """One frozen pre-norm decoder layer."""

    @property
    def attention(self) -> nn.Module:
        """The layer's attention module, which maps `norm1`'s output to the residual's summand."""
        module: nn.Module = self.layer.self_attn
        return module

    @property
    def ffn_ends(self) -> tuple[nn.Module, nn.Module]:
        """The FFN's first module, which reads `norm2`'s output, and its last."""
        raise NotImplementedError

    @property
    def query_width(self) -> int:
        """Width of the query projection's output per token."""
        return int(self.layer.self_attn.q_proj.out_features)

    @property
    def value_width(self) -> int:
        """Width of the value projection's output per token; smaller than the queries' if heads share values."""
        return int(self.layer.self_attn.v_proj.out_features)

    def queries(self, flat: Tensor, positions: Positions) -> Tensor:
        """Scaled queries per head from the query projection's output; linear in ``flat``.

        Shapes: flat ``(batch, tokens, query width)`` -> ``(batch, heads, tokens, head width)``.
        """
        raise NotImplementedError

    def values(self, flat: Tensor) -> Tensor:
        """Values per head from the value projection's output. Shapes: ``(batch, tokens, value width)`` -> as of `queries`."""
        raise NotImplementedError

    def project_queries(self, normed: Tensor, positions: Positions) -> Tensor:
        """Scaled queries; see `Block.project_queries`."""
        return self.queries(self.layer.self_attn.q_proj(normed), positions)

    def norm2(self, hidden: Tensor) -> Tensor:
        """The FFN's input, from the attention's residual sum."""
        raise NotImplementedError

    def ffn(self, hidden: Tensor) -> Tensor:
        """The FFN's output, before the residual."""
        raise NotImplementedError

    def finish(self, hidden: Tensor, attention: Tensor) -> Tensor:
        """The layer's output, by the pre-norm residuals of attention and FFN."""
        hidden = hidden + attention
        return hidden + self.ffn(self.norm2(hidden))


class Positions(NamedTuple):
    """Cosine and sine of rotary embeddings, ``(batch or 1, tokens, head width)``; None for learned positions."""

    cos: Tensor | None
    sin: Tensor | None

    def at(self, places: Tensor) -> Positions:
        """The positions of selected tokens of each row, ``(batch, n)``."""
        if self.cos is None or self.sin is None:
            return self
        rows = torch.arange(len(places), device=places.device)[:, None]
        return Positions(*(part.expand(len(places), -1, -1)[rows, places] for part in (self.cos, self.sin)))


class OPTBlock(DecoderBlock):
    """Zhang et al. 2022 (OPT): learned positions, layer norm before each sublayer."""

    def norm1(self, hidden: Tensor) -> Tensor:
        """Layer norm before the attention."""
        return self.layer.self_attn_layer_norm(hidden)  # type: ignore[no-any-return]

    def norm2(self, hidden: Tensor) -> Tensor:
        """Layer norm before the FFN."""
        return self.layer.final_layer_norm(hidden)  # type: ignore[no-any-return]

    @property
    def ffn_ends(self) -> tuple[nn.Module, nn.Module]:
        """``fc1`` and ``fc2``."""
        return self.layer.fc1, self.layer.fc2

    def ffn(self, hidden: Tensor) -> Tensor:
        """``fc2(activation(fc1(hidden)))``."""
        return self.layer.fc2(self.layer.activation_fn(self.layer.fc1(hidden)))  # type: ignore[no-any-return]

    def output(self, attended: Tensor) -> Tensor:
        """The output projection ``out_proj``."""
        return self.layer.self_attn.out_proj(attended)  # type: ignore[no-any-return]

    def queries(self, flat: Tensor, positions: Positions) -> Tensor:
        """Scaled queries per head, without rotation."""
        return self._heads(flat * self.scale)

    def values(self, flat: Tensor) -> Tensor:
        """Values per head."""
        return self._heads(flat)

    def project_keys(self, normed: Tensor, positions: Positions | None) -> Keys:
        """Keys and values per head, without rotation."""
        attention = self.layer.self_attn
        return Keys(self._heads(attention.k_proj(normed)), self.values(attention.v_proj(normed)))


class LlamaBlock(DecoderBlock):
    """Touvron et al. 2023 (Llama) and its relatives: rotary positions, RMS norm, grouped-query attention."""

    def norm1(self, hidden: Tensor) -> Tensor:
        """RMS norm before the attention."""
        return self.layer.input_layernorm(hidden)  # type: ignore[no-any-return]

    def norm2(self, hidden: Tensor) -> Tensor:
        """RMS norm before the FFN."""
        return self.layer.post_attention_layernorm(hidden)  # type: ignore[no-any-return]

    @property
    def ffn_ends(self) -> tuple[nn.Module, nn.Module]:
        """The gated MLP, which is both ends."""
        return self.layer.mlp, self.layer.mlp

    def ffn(self, hidden: Tensor) -> Tensor:
        """The gated MLP."""
        return self.layer.mlp(hidden)  # type: ignore[no-any-return]

    def output(self, attended: Tensor) -> Tensor:
        """The output projection ``o_proj``."""
        return self.layer.self_attn.o_proj(attended)  # type: ignore[no-any-return]

    def queries(self, flat: Tensor, positions: Positions) -> Tensor:
        """Rotated and scaled queries per head."""
        return rotated(self._heads(flat), positions) * self.scale

    def values(self, flat: Tensor) -> Tensor:
        """Values per query head, repeated where heads share them."""
        return self._shared(self._heads(flat))

    def project_keys(self, normed: Tensor, positions: Positions | None) -> Keys:
        """Keys, rotated if there are positions, and values, both per query head."""
        attention = self.layer.self_attn
        keys = self._heads(attention.k_proj(normed))
        if positions is not None:
            keys = rotated(keys, positions)
        return Keys(self._shared(keys), self.values(attention.v_proj(normed)))

    def _shared(self, parts: Tensor) -> Tensor:
        """Keys or values repeated for every query head (grouped-query attention)."""
        shared = self.heads // parts.shape[1]
        return parts.repeat_interleave(shared, dim=1) if shared > 1 else parts


def rotated(parts: Tensor, positions: Positions) -> Tensor:
    """Queries or keys ``(batch, heads, tokens, head width)`` with rotary embeddings applied."""
    assert positions.cos is not None
    assert positions.sin is not None
    cos, sin = positions.cos.unsqueeze(1), positions.sin.unsqueeze(1)
    first, second = parts.chunk(2, dim=-1)
    return parts * cos + torch.cat((-second, first), dim=-1) * sin


class BertBlock(Block):
    """Devlin et al. 2019 (BERT) and its relatives BGE and MiniLM: bidirectional attention, norms after the sublayers."""

    def norm1(self, hidden: Tensor) -> Tensor:
        """The input itself: norms follow the sublayers."""
        return hidden

    def output(self, attended: Tensor) -> Tensor:
        """The attention's output projection."""
        return self.layer.attention.output.dense(attended)  # type: ignore[no-any-return]

    def finish(self, hidden: Tensor, attention: Tensor) -> Tensor:
        """The layer's output, with norms after each residual sum."""
        normed = self.layer.attention.output.LayerNorm(hidden + attention)
        out = self.layer.output.dense(self.layer.intermediate(normed))
        return self.layer.output.LayerNorm(normed + out)  # type: ignore[no-any-return]

    def project_queries(self, normed: Tensor, positions: Positions) -> Tensor:
        """Scaled queries per head."""
        return self._heads(self.layer.attention.self.query(normed) * self.scale)

    def project_keys(self, normed: Tensor, positions: Positions | None) -> Keys:
        """Keys and values per head."""
        attention = self.layer.attention.self
        return Keys(self._heads(attention.key(normed)), self._heads(attention.value(normed)))


class FrozenBackbone(nn.Module):
    """A Hugging Face decoder or encoder with frozen parameters, as a list of `Block`.

    Attributes:
        sharded: whether several processes hold a part of each layer (`dasearch.training.sharding`) and thus must call all layers
            in the same order.

    Raises:
        BackboneError: for a family without an entry in ``FAMILIES``, or a configuration with a different forward pass.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, *, name: str = "", scale: AttentionScale = AttentionScale.HEAD
    ) -> None:
        super().__init__()
        family = FAMILIES.get(model.config.model_type)
        if family is None:
            raise unknown_family(name or "the backbone", model.config.model_type)
        self.name, self.scale, self.sharded = name, scale, False
        self._elsewhere: dict[tuple[torch.dtype, torch.device], FrozenBackbone] = {}
        self.model = model.eval().requires_grad_(False)
        self.config = model.config
        self.width = int(model.config.hidden_size)
        self.vocabulary = int(model.config.vocab_size)
        self.window = _window(model.config)
        self.max_tokens = min(filter(None, (int(model.config.max_position_embeddings), self.window)))
        self.causal = model.config.model_type in DECODERS
        self._parts = family(model)
        self.blocks = nn.ModuleList(self._parts.block(layer, model.config, scale) for layer in self._parts.layers)

    def computing_in(self, dtype: torch.dtype, device: torch.device) -> FrozenBackbone:
        """A cached copy of this model in another dtype or on another device."""
        weights = next(self.model.parameters())
        if (weights.dtype, weights.device.type) == (dtype, device.type):
            return self
        if (dtype, device) not in self._elsewhere:
            model = copy.deepcopy(self.model).to(device=device, dtype=dtype)
            self._elsewhere[dtype, device] = FrozenBackbone(model, name=self.name, scale=self.scale)
        return self._elsewhere[dtype, device]

    def moved(self, device: torch.device, dtype: torch.dtype, move: Callable[[FrozenBackbone], None]) -> FrozenBackbone:
        """Let `computing_in` give what ``move`` puts on the device itself: this model, or its copy in another dtype."""
        host = self.computing_in(dtype, torch.device("cpu"))
        move(host)
        if host is not self:
            self._elsewhere[dtype, device] = self._elsewhere.pop((dtype, torch.device("cpu")))
        return host

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """As `hidden_states`."""
        return self.hidden_states(tokens, real)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stay in evaluation mode whatever ``mode``: a frozen model has no dropout."""
        return super().train(False)

    @property
    def token_sd(self) -> float:
        """Standard deviation of the token embeddings' entries."""
        return float(
            self.embed(torch.arange(self.vocabulary, device=next(self.model.parameters()).device)).float().std()
        )

    @property
    def all_blocks(self) -> list[Block]:
        """The layers, bottom first."""
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def decoder_blocks(self) -> list[DecoderBlock]:
        """The layers of a decoder, bottom first.

        Raises:
            BackboneError: for an encoder.
        """
        if not self.causal:
            raise not_a_decoder(self.name, self.config.model_type)
        return list(self.blocks)  # type: ignore[arg-type]

    def mask(self, real: Tensor) -> Tensor | None:
        """The unmodified model's attention mask for `Block.forward`: None for a decoder (causal), all real tokens for an encoder.

        Shapes: real ``(batch, m)`` bool -> ``(batch, m, m)``.
        """
        return None if self.causal else real[:, None, :].expand(-1, real.shape[1], -1)

    def embed(self, tokens: Tensor, extra_rows: Tensor | None = None) -> Tensor:
        """Token embeddings, where ids from ``vocabulary`` upwards index ``extra_rows``.

        Shapes: tokens ``(batch, m)``, extra_rows ``(e, width)`` or ``(K, e, width)`` -> ``(batch, m, width)``.
        """
        if extra_rows is None:
            return self._parts.tokens(tokens)
        special = tokens >= self.vocabulary
        frozen = self._parts.tokens(tokens.masked_fill(special, 0))
        ids = self.vocabulary + torch.arange(extra_rows.shape[-2], device=tokens.device)
        chosen = (tokens[..., None] == ids).to(
            frozen.dtype
        )  # a matrix product, with a fast backward pass: few rows, many tokens
        return torch.where(special[..., None], linear(chosen, extra_rows.transpose(-1, -2), None), frozen)

    def start(self, embedded: Tensor) -> tuple[Tensor, Positions]:
        """The first block's input, and the positions that every block reads.

        Raises:
            BackboneError: for rows longer than the attention's sliding window.
        """
        if self.window is not None and embedded.shape[1] > self.window:
            raise BackboneError(
                f"{self.name or 'the backbone'} attends to {self.window} tokens at most (sliding_window) and a row has "
                f"{embedded.shape[1]}; cut rows to {self.window} tokens"
            )
        places = torch.arange(embedded.shape[1], device=embedded.device)[None]  # the same for every row
        return self._parts.start(embedded, places)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The norm after the last layer. Shapes: ``(..., width)`` -> ``(..., width)``."""
        norm: Tensor = self._parts.final_norm(hidden)
        return norm

    def hidden_states(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Last hidden states of the unmodified model, for rows padded on the right.

        Shapes: tokens, real (bool) ``(batch, m)`` -> ``(batch, m, width)``.
        """
        *_, last = self.layer_states(tokens, real)
        return self.final_norm(last)

    def layer_states(self, tokens: Tensor, real: Tensor) -> Iterator[Tensor]:
        """The unmodified model's input of each layer, then the last layer's output, each ``(batch, m, width)``."""
        hidden, positions = self.start(self.embed(tokens))
        mask = self.mask(real)
        for block in self.all_blocks:
            yield hidden
            hidden = block(hidden, positions, mask)
        yield hidden


FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers in configurations


def _window(config: transformers.PretrainedConfig) -> int | None:
    """Size of the attention's sliding window in tokens, including the current one, which limits row length; None: unlimited.

    Raises:
        BackboneError: for layers with another kind of attention.
    """
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [FULL if window is None else SLIDING])
    others = sorted(kinds - {FULL, SLIDING})
    if others:
        raise BackboneError(
            f"a layer of this model has {others[0]}, which dasearch cannot wrap; choose another backbone"
        )
    return int(window) if window is not None and SLIDING in kinds else None


class _Parts(NamedTuple):
    """The parts of a model family outside its layers."""

    layers: nn.ModuleList
    block: type[Block]
    tokens: Callable[[Tensor], Tensor]
    start: Callable[[Tensor, Tensor], tuple[Tensor, Positions]]
    final_norm: Callable[[Tensor], Tensor]


def _opt(model: transformers.PreTrainedModel) -> _Parts:
    decoder = model.decoder
    if decoder.project_in is not None:
        raise BackboneError(
            "this OPT model's embeddings are narrower than its layers (as opt-350m's are); choose one such as facebook/opt-125m"
        )
    if not model.config.do_layer_norm_before:
        raise BackboneError(
            "this OPT model norms after its sublayers (as opt-350m does); choose a pre-norm one such as facebook/opt-125m"
        )

    def start(embedded: Tensor, places: Tensor) -> tuple[Tensor, Positions]:
        return embedded + decoder.embed_positions(None, position_ids=places), Positions(None, None)

    final_norm = decoder.final_layer_norm or nn.Identity()
    return _Parts(decoder.layers, OPTBlock, decoder.embed_tokens, start, final_norm)


def _llama(model: transformers.PreTrainedModel) -> _Parts:
    def start(embedded: Tensor, places: Tensor) -> tuple[Tensor, Positions]:
        return embedded, Positions(*model.rotary_emb(embedded, places))

    return _Parts(model.layers, LlamaBlock, model.embed_tokens, start, model.norm)


def _bert(model: transformers.PreTrainedModel) -> _Parts:
    embeddings = model.embeddings
    if model.config.is_decoder:
        raise BackboneError(
            "this BERT model is a decoder (is_decoder in its configuration) and dasearch reads encoders; choose an encoder, or a "
            f"decoder of family {', '.join(DECODERS)}"
        )

    def start(embedded: Tensor, places: Tensor) -> tuple[Tensor, Positions]:
        first_kind = embeddings.token_type_embeddings.weight[0]
        summed = embedded + first_kind + embeddings.position_embeddings(places)
        return embeddings.LayerNorm(summed), Positions(None, None)

    return _Parts(model.encoder.layer, BertBlock, embeddings.word_embeddings, start, nn.Identity())


DECODERS: dict[str, Callable[[transformers.PreTrainedModel], _Parts]] = {
    "opt": _opt,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
}
FAMILIES = {**DECODERS, "bert": _bert}


def unknown_family(name: str, family: str) -> BackboneError:
    """The error for a family without an entry in ``FAMILIES``."""
    return BackboneError(
        f"{name} is of family {family!r}, which dasearch cannot wrap; choose one of {', '.join(FAMILIES)}"
    )


def not_a_decoder(name: str, family: str) -> BackboneError:
    """The error for an encoder where a decoder is required."""
    return BackboneError(
        f"{name or 'the backbone'} is an encoder (family {family!r}) and DARec needs a decoder; "
        f"choose one of {', '.join(DECODERS)}, or model.kind idle or ra-rec"
    )

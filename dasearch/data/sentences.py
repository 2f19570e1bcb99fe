"""Item sentences: an item's keys and values as one text, tokenised once per study (DARec sec. 2.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
import transformers
from torch import Tensor

from dasearch.data.dataset import TITLE, IntArray, Item

ITEM_TOKENS = 30  # DARec sec. 3.1.4
FIRST_KEYS = (TITLE, "brand", "category")  # RecFormer's order; truncation keeps what comes first


def item_sentence(item: Item) -> str:
    """``title ... brand ... category ...`` and then the item's other attributes, in their own order."""
    first = [key for key in FIRST_KEYS if key in item.attributes]
    rest = [key for key in item.attributes if key not in FIRST_KEYS]
    return " ".join(f"{key} {item.attributes[key]}" for key in (*first, *rest))


def tokenise_items(
    items: Sequence[Item], tokenizer: transformers.PreTrainedTokenizerBase, *, max_tokens: int = ITEM_TOKENS
) -> tuple[tuple[int, ...], ...]:
    """Each item's sentence, truncated to ``max_tokens`` tokens and at least one token long."""
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.eos_token_id
    encoded = tokenizer([item_sentence(item) for item in items], add_special_tokens=False)["input_ids"]
    return tuple(tuple(tokens[:max_tokens]) or (unknown or 0,) for tokens in encoded)


class Sentences:
    """All items' tokens in one flat table.

    Shapes: ``flat`` ``(total,)``, ``starts`` and ``lengths`` ``(items,)``.
    """

    def __init__(self, tokens: Sequence[Sequence[int]]) -> None:
        self.lengths: IntArray = np.array([len(sentence) for sentence in tokens], dtype=np.int64)
        self.starts: IntArray = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)
        self.flat: IntArray = np.array([token for sentence in tokens for token in sentence], dtype=np.int64)

    @classmethod
    def of_table(cls, flat: IntArray, lengths: IntArray) -> Sentences:
        """Build the table from all sentences' concatenated tokens and their lengths."""
        sentences = cls(())
        sentences.flat, sentences.lengths = flat, lengths
        sentences.starts = np.cumsum(lengths) - lengths
        return sentences

    def __len__(self) -> int:
        return len(self.lengths)

    def emptied(self) -> Sentences:
        """The same number of sentences, all empty."""
        emptied = copy(self)
        emptied.lengths = np.zeros_like(self.lengths)
        return emptied

    def of(self, item: int) -> IntArray:
        """Token ids of one item."""
        return self.flat[self.starts[item] : self.starts[item] + self.lengths[item]]

    def padded(self, items: Tensor, *, pad_token: int) -> tuple[Tensor, Tensor]:
        """Tokens ``(k, longest)`` padded on the right, and a bool mask of the real ones."""
        chosen = items.numpy()
        lengths = self.lengths[chosen]
        places = np.arange(lengths.max())[None]
        real = places < lengths[:, None]
        tokens = self.flat[np.where(real, self.starts[chosen][:, None] + places, 0)]
        return torch.from_numpy(np.where(real, tokens, pad_token)), torch.from_numpy(real)

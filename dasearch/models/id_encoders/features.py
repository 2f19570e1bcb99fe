"""FDSA: a causal transformer over the items and one over their features, concatenated at each position.

Zhang et al. 2019, "Feature-level Deeper Self-Attention Network for Sequential Recommendation" (IJCAI).
Differs from the paper: an item's features are its text vector, as in RecBole's runs on text data, so there is no attention
over several feature fields of one item; softmax over the catalogue, as for the other encoders.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dasearch.models.id_encoders.base import EncoderSettings
from dasearch.models.id_encoders.sequential import SASRec, causal_states, transformer


class FDSA(SASRec):
    """SASRec with a second stream that reads the items' text vectors.

    Shapes: texts ``(items, any width)``, vectors of a frozen language model.
    """

    texts: Tensor

    def __init__(self, n_items: int, settings: EncoderSettings, texts: Tensor) -> None:
        super().__init__(n_items, settings)
        self.register_buffer("texts", standardised(texts))
        self.reader = nn.Linear(texts.shape[1], self.width)
        self.feature_network = transformer(self.width, settings)
        self.join = nn.Linear(2 * self.width, self.width)

    def states(self, histories: Tensor) -> Tensor:
        """States of both streams, joined by a linear map; see `SequentialEncoder.states`."""
        places = self.places(torch.arange(histories.shape[1], device=histories.device))
        features = self.dropout(self.reader(self.texts[histories.clamp(min=0)]) + places)
        joined = torch.cat([super().states(histories), causal_states(self.feature_network, features)], dim=-1)
        return self.join(joined)  # type: ignore[no-any-return]


def standardised(texts: Tensor) -> Tensor:
    """Text vectors with mean 0 and sd 1 per coordinate over the catalogue; raw frozen vectors share one dominant direction."""
    scaled: Tensor = (texts - texts.mean(0)) / texts.std(0, correction=0).clamp(min=1e-6)
    return scaled

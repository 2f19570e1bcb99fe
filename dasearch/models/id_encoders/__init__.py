"""ID encoders behind one protocol: ComiRec, SASRec, GRU4Rec, MF, NeuMF."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dasearch.errors import StudyError, suggestion
from dasearch.models.id_encoders.base import EncoderBatch, EncoderSettings, IDEncoder, Reads
from dasearch.models.id_encoders.comirec import ComiRecDR, ComiRecSA
from dasearch.models.id_encoders.factors import FactorEncoder, matrix_factorization, neumf
from dasearch.models.id_encoders.sequential import GRU4Rec, SASRec

Build = Callable[[int, int, EncoderSettings, torch.Generator], IDEncoder]

ENCODERS: dict[str, Build] = {
    "comirec-dr": lambda users, items, settings, generator: ComiRecDR(items, settings),
    "comirec-sa": lambda users, items, settings, generator: ComiRecSA(items, settings),
    "sasrec": lambda users, items, settings, generator: SASRec(items, settings),
    "gru4rec": lambda users, items, settings, generator: GRU4Rec(items, settings),
    "mf": matrix_factorization,
    "neumf": neumf,
}


def build_encoder(settings: EncoderSettings, n_users: int, n_items: int, generator: torch.Generator) -> IDEncoder:
    """An untrained encoder; ``generator`` decides its weights, the global stream stays as it was.

    Raises:
        StudyError: for an unknown name.
    """
    if settings.name not in ENCODERS:
        known = sorted(ENCODERS)
        raise StudyError(
            f"there is no ID encoder {settings.name!r}{suggestion(settings.name, known)}; choose {', '.join(known)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # library modules draw from here
        return ENCODERS[settings.name](n_users, n_items, settings, generator)


__all__ = ["ENCODERS", "EncoderBatch", "EncoderSettings", "FactorEncoder", "IDEncoder", "Reads", "build_encoder"]

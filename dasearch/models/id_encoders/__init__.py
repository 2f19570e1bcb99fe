"""ID encoders behind one protocol: ComiRec, SASRec, GRU4Rec, MF, NeuMF."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from dasearch.errors import StudyError, suggestion
from dasearch.models.id_encoders.base import EncoderBatch, EncoderSettings, IDEncoder, InterestPool, Reads
from dasearch.models.id_encoders.comirec import ComiRecDR, ComiRecSA
from dasearch.models.id_encoders.factors import FactorEncoder, matrix_factorization, neumf
from dasearch.models.id_encoders.sequential import GRU4Rec, SASRec


class Entry(NamedTuple):
    """An encoder's name in tables, and how to build it from users, items, settings and a generator."""

    title: str
    build: Callable[[int, int, EncoderSettings, torch.Generator], IDEncoder]


ENCODERS: dict[str, Entry] = {
    "comirec-dr": Entry("ComiRec-DR", lambda users, items, settings, generator: ComiRecDR(items, settings)),
    "comirec-sa": Entry("ComiRec-SA", lambda users, items, settings, generator: ComiRecSA(items, settings)),
    "sasrec": Entry("SASRec", lambda users, items, settings, generator: SASRec(items, settings)),
    "gru4rec": Entry("GRU4Rec", lambda users, items, settings, generator: GRU4Rec(items, settings)),
    "mf": Entry("MF", matrix_factorization),
    "neumf": Entry("NeuMF", neumf),
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
        return ENCODERS[settings.name].build(n_users, n_items, settings, generator)


__all__ = [
    "ENCODERS",
    "EncoderBatch",
    "EncoderSettings",
    "FactorEncoder",
    "IDEncoder",
    "InterestPool",
    "Reads",
    "build_encoder",
]

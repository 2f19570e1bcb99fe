"""ID encoders behind one interface: ComiRec, SASRec, GRU4Rec, BERT4Rec, FDSA, MF, NeuMF."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dasearch.errors import StudyError, suggestion
from dasearch.models.id_encoders.base import EncoderBatch, EncoderSettings, IDEncoder, InterestPool, Reads
from dasearch.models.id_encoders.bidirectional import BERT4Rec
from dasearch.models.id_encoders.comirec import ComiRecDR, ComiRecSA
from dasearch.models.id_encoders.factors import FactorEncoder, matrix_factorization, neumf
from dasearch.models.id_encoders.features import FDSA
from dasearch.models.id_encoders.sequential import GRU4Rec, SASRec


class Knowledge(NamedTuple):
    """Inputs for building an encoder: counts, text vectors of the items ``(items, any width)``, and a generator."""

    n_users: int
    n_items: int
    texts: Tensor
    generator: torch.Generator


class Entry(NamedTuple):
    """A registered encoder: display name, constructor, whether it reads item texts, whether scores are dot products."""

    title: str
    build: Callable[[EncoderSettings, Knowledge], IDEncoder]
    reads_texts: bool = False
    by_product: bool = True


ENCODERS: dict[str, Entry] = {
    "comirec-dr": Entry("ComiRec-DR", lambda settings, known: ComiRecDR(known.n_items, settings)),
    "comirec-sa": Entry("ComiRec-SA", lambda settings, known: ComiRecSA(known.n_items, settings)),
    "sasrec": Entry("SASRec", lambda settings, known: SASRec(known.n_items, settings)),
    "gru4rec": Entry("GRU4Rec", lambda settings, known: GRU4Rec(known.n_items, settings)),
    "bert4rec": Entry("BERT4Rec", lambda settings, known: BERT4Rec(known.n_items, settings)),
    "fdsa": Entry("FDSA", lambda settings, known: FDSA(known.n_items, settings, known.texts), reads_texts=True),
    "mf": Entry(
        "MF",
        lambda settings, known: matrix_factorization(known.n_users, known.n_items, settings, known.generator),
        by_product=False,  # items have biases
    ),
    "neumf": Entry(
        "NeuMF",
        lambda settings, known: neumf(known.n_users, known.n_items, settings, known.generator),
        by_product=False,
    ),
}


def unknown_encoder(name: str) -> str:
    """The error message for a name that is not in `ENCODERS`."""
    known = sorted(ENCODERS)
    return f"there is no ID encoder {name!r}{suggestion(name, known)}; choose {', '.join(known)}"


def encoder_entry(name: str) -> Entry:
    """The encoder registered under this name.

    Raises:
        StudyError: if the name is unknown.
    """
    if name not in ENCODERS:
        raise StudyError(unknown_encoder(name))
    return ENCODERS[name]


def build_encoder(
    settings: EncoderSettings, n_users: int, n_items: int, texts: Tensor, generator: torch.Generator
) -> IDEncoder:
    """Build an untrained encoder without advancing the global random state.

    Args:
        settings: the encoder's kind and sizes.
        n_users: number of training users.
        n_items: size of the catalogue.
        texts: text vectors of the items, ``(items, any width)``, for the encoders that read them.
        generator: determines the initial weights.

    Raises:
        StudyError: if the name is unknown.
    """
    entry = encoder_entry(settings.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # library modules draw from here
        return entry.build(settings, Knowledge(n_users, n_items, texts, generator))


__all__ = [
    "ENCODERS",
    "EncoderBatch",
    "EncoderSettings",
    "FactorEncoder",
    "IDEncoder",
    "InterestPool",
    "Reads",
    "build_encoder",
    "encoder_entry",
    "unknown_encoder",
]

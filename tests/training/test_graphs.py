"""Which steps are launched, lightly or in full, and which are captured, by the remaining memory, on a simulated GPU."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dasearch.data import Rows, SequenceBatch
from dasearch.training.graphs import StepGraphs
from dasearch.training.method import Drawn

ROOM = 1000  # bytes of the card; a step takes one a number
NUMBERS = 8  # of a row


def batch(rows: int) -> SequenceBatch:
    places = torch.zeros(rows, 1, dtype=torch.long)
    return SequenceBatch(Rows(places, places), places[:, 0], places, places, places, places, places[:, 0])


@dataclass
class Replayed:
    log: list[str]

    def replay(self, given: Any) -> None:
        self.log.append("replay")


class Card(StepGraphs):
    """A simulated GPU with limited memory that records launches and captures."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.taken = 0  # by the pool
        super().__init__(torch.device("cpu"))

    def _free(self) -> int:
        return ROOM - (self.taken if self.largest else 0)

    def _launch(self, *given: Any, **steps: Any) -> None:
        super()._launch(*given, **steps)
        self.bytes_a_number = 1.0

    def _capture(self, batch: SequenceBatch, drawn: Drawn, step: Any) -> Any:
        self.log.append("capture")
        self.taken = max(self.taken if self.largest else 0, NUMBERS * len(batch.users))
        return Replayed(self.log)

    def steps(self, *rows: int) -> str:
        self.log.clear()
        for count in rows:
            step, light = (lambda *_, name=name: self.log.append(name) for name in ("full", "light"))
            self.run(batch(count), Drawn(), step=step, light=light)
        return " ".join(self.log)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    none = SimpleNamespace(memory_allocated=lambda _: 0, max_memory_allocated=lambda _: 0)
    monkeypatch.setattr("dasearch.training.graphs.torch.cuda", none)
    return Card()


def test_the_second_step_of_a_shape_is_captured(card: Card) -> None:
    assert card.steps(10, 10, 10, 20, 20) == "full capture replay replay full capture replay"


def test_steps_are_light_while_a_large_graph_is_kept(card: Card) -> None:
    assert card.steps(80, 80) == "full capture replay"
    assert card.steps(60, 60, 60) == "light capture replay replay"  # in the memory of the large one


def test_a_larger_graph_replaces_smaller_ones(card: Card) -> None:
    card.steps(60, 60, 40, 40)
    assert card.steps(90, 90) == "light capture replay"
    assert card.steps(40, 60, 40) == "capture replay capture replay replay"


def test_what_never_fits_is_launched(card: Card) -> None:
    assert card.steps(120, 120, 120) == "full light light"

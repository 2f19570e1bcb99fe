"""What the settings of models have in common that read the vectors of a trained ID encoder: IDLE-Adapter, RA-Rec, E4SRec."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from dasearch.layout import ModelKind


class Variation(StrEnum):
    """The whole model, or what is left of it without what a layout places."""

    WHOLE = "whole"
    FROZEN = "frozen"  # the frozen backbone with the model's own input and head


class OverEncoderSettings(BaseModel):
    """Which of such models, whole or without what a layout places."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ModelKind
    variation: Variation = Field(Variation.WHOLE, description="whole, or frozen: nothing is injected")

    @property
    def label(self) -> str:
        """What a report calls this model."""
        return self.kind.value if self.searchable else f"{self.kind}, {self.variation}"

    @property
    def searchable(self) -> bool:
        """Whether a layout changes anything."""
        return self.variation is Variation.WHOLE

    @property
    def prompt_group(self) -> bool:
        """Whether a prompt and what follows it are one segment of a row; always, where masks do not go by items."""
        return True

    @property
    def holds_encoder(self) -> bool:
        """Whether the model has an ID encoder in it."""
        return True

    @property
    def compared(self) -> tuple[str, ...]:
        """The variations that a final table sets beside the search's winner."""
        return (Variation.FROZEN,)

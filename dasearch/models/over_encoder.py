"""Settings shared by models that read the vectors of a trained ID encoder: IDLE-Adapter, RA-Rec, E4SRec."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from dasearch.layout import ModelKind


class Variation(StrEnum):
    """The full model, or its ablation without the modules that a layout places."""

    WHOLE = "whole"
    FROZEN = "frozen"  # only the model's own input and head on the frozen backbone


class OverEncoderSettings(BaseModel):
    """Settings of models over an ID encoder: the full model or its ablation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ModelKind
    variation: Variation = Field(Variation.WHOLE, description="whole, or frozen: nothing is injected")

    @property
    def label(self) -> str:
        """The model's name in reports."""
        return self.kind.value if self.searchable else f"{self.kind}, {self.variation}"

    @property
    def searchable(self) -> bool:
        """Whether the layout affects the model."""
        return self.variation is Variation.WHOLE

    @property
    def prompt_group(self) -> bool:
        """Whether a prompt and what follows it are one segment of a row; always True, as masks do not depend on items."""
        return True

    @property
    def holds_encoder(self) -> bool:
        """Whether the model contains an ID encoder."""
        return True

    @property
    def compared(self) -> tuple[str, ...]:
        """The variations compared with the search's winner in the results table."""
        return (Variation.FROZEN,)

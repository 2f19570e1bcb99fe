"""The forms by name, and writing one of them whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dasearch.errors import ExportError, suggestion
from dasearch.export.graph import write_onnx, write_pt2
from dasearch.export.huggingface import write_hf
from dasearch.export.layout import write_layout
from dasearch.export.pytorch import write_torch
from dasearch.folders import whole_folder
from dasearch.training.recommender import Recommender

TOP = 10  # items that a served graph answers with


@dataclass(frozen=True)
class Wishes:
    """What the user asked for besides the form; a form that cannot grant a wish refuses it.

    Args:
        sites: the sites to take along, where a form has no place for all; None: all.
        top: k of a graph that recommends.
    """

    sites: tuple[str, ...] | None = None
    top: int = TOP


Write = Callable[[Recommender, Path, Wishes], None]


class Format(NamedTuple):
    """One form: what it is, and what writes it into an empty folder."""

    title: str
    write: Write


FORMATS: dict[str, Format] = {
    "layout": Format("layout.json and its JSON Schema", write_layout),
    "torch": Format("one file of plain PyTorch with its weights, opened with torch and safetensors alone", write_torch),
    "hf": Format("a folder for AutoModel.from_pretrained(..., trust_remote_code=True), with model card", write_hf),
    "onnx": Format("one graph for ONNX runtimes: history tokens in, the best items and their scores out", write_onnx),
    "pt2": Format("the same graph of torch.export, opened with torch alone", write_pt2),
}


def export(recommender: Recommender, form: str, out: Path, wishes: Wishes | None = None) -> Path:
    """Write a trained recommender as ``form`` into the new folder ``out``.

    Raises:
        ExportError: for an unknown form, something the form cannot express, or a place that is taken.
    """
    if form not in FORMATS:
        raise ExportError(f"there is no format {form!r}{suggestion(form, list(FORMATS))}; choose {', '.join(FORMATS)}")
    with whole_folder(out, ExportError) as folder:
        FORMATS[form].write(recommender, folder, wishes or Wishes())
    return out

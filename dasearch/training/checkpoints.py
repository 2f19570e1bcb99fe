"""Checkpoints of an unfinished training: trained parameters, optimiser moments, generator, history.

One safetensors file, written beside its place and renamed, so that a killed process leaves the previous one whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dasearch.data import IntArray
from dasearch.errors import first_line
from dasearch.folders import whole_file

RECORD = "dasearch"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and a JSON record to one file, whole or not at all."""
    with whole_file(path) as unfinished:
        save_file(copied(tensors), unfinished, metadata={RECORD: json.dumps(dict(record))})


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors stores them: on the CPU, in one piece, none sharing memory with another."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def prefixed(prefix: str, tensors: Mapping[str, Tensor | IntArray] | None) -> dict[str, Tensor]:
    """``prefix/name`` for each name; nothing of None."""
    return {f"{prefix}/{name}": torch.as_tensor(tensor) for name, tensor in (tensors or {}).items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `prefixed` named, by their own names."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record that `save_tensors` wrote.

    Raises:
        ValueError: if the file is not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[RECORD])
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a file that dasearch wrote, or it is damaged ({first_line(error)}); delete it"
        ) from None

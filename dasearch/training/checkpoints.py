"""Checkpoints of an unfinished training: trained parameters, optimiser moments, generator state, history.

One safetensors file, written atomically (to a temporary file, then renamed), so that a killed process leaves the previous
checkpoint intact.
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
    """Write tensors and a JSON record to one file, atomically."""
    with whole_file(path) as unfinished:
        save_file(copied(tensors), unfinished, metadata={RECORD: json.dumps(dict(record))})


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors requires them: on the CPU, contiguous, without shared memory."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def prefixed(prefix: str, tensors: Mapping[str, Tensor | IntArray] | None) -> dict[str, Tensor]:
    """The tensors renamed to ``prefix/name``; an empty dictionary for None."""
    return {f"{prefix}/{name}": torch.as_tensor(tensor) for name, tensor in (tensors or {}).items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named by `prefixed`, under their original names."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record that `save_tensors` wrote.

    Raises:
        ValueError: if the file was not written by `save_tensors` or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[RECORD])
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a file that dasearch wrote, or it is damaged ({first_line(error)}); delete it"
        ) from None

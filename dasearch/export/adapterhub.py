"""``adapters``: the layout as a configuration and weights of AdapterHub's `adapters` 1.3.0, which trains and stacks them.

Poth et al. 2023, https://arxiv.org/abs/2311.11077. That library pins another transformers, so it is never imported here;
tests open the folder with it in a separate environment. It has two sites per layer and hooks the modules that an
interface names. Named as the modules that read the frozen norm's output (``q_proj``; ``fc1`` or ``gate_proj``), its hooks
pass a parallel adapter the sublayer's input, whatever the norm; named after the norms, as in its own interfaces, they
would pass it the residual. Its layer norm getters, which all return the last layer's norm, are not used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dasearch.errors import ExportError
from dasearch.export.inserted import AdapterWeights, adapter_weights, row_in_words, write_model_files
from dasearch.export.options import ExportOptions
from dasearch.layout import Choice, Join, site_names
from dasearch.models.adapters import Activation, ParallelReduce
from dasearch.models.darec import RecommendationSite, Variation
from dasearch.models.insertion import CONTEXT, TWO_SITES
from dasearch.training.checkpoints import copied
from dasearch.training.recommender import Recommender

FORM = "adapters"
NAME = "dasearch"  # of the adapter
LIBRARY = "1.3.0"
CONFIG_NAME, WEIGHTS_NAME, INTERFACE_NAME = "adapter_config.json", "adapter.safetensors", "adapter_interface.json"
PLACES = {"causal": "mh_adapter", "recommendation": "output_adapter"}  # sites by their names in its configuration
MODULES = {"causal_adapter": "attention_adapters", "recommendation_adapter": "output_adapters"}  # and in its model
PROJECTIONS = {"down": "adapter_down.0", "up": "adapter_up"}
ACTIVATIONS = {Activation.RELU: "relu", Activation.GELU: "gelu", Activation.NONE: "linear"}


@dataclass(frozen=True)
class Family:
    """Module paths of a decoder family, below the bare model, for the library's interface.

    Attributes:
        root: path of the decoder.
        out_projection: name of the attention's output projection.
        ffn: the first module of the FFN, which reads the norm's output, and the last.
    """

    root: str
    out_projection: str
    ffn: tuple[str, str]

    def interface(self) -> dict[str, Any]:
        """The library's ``AdapterModelInterface``."""
        first, last = self.ffn
        return {
            "adapter_methods": ["bottleneck"],
            "model_embeddings": f"{self.root}embed_tokens",
            "model_layers": f"{self.root}layers",
            "layer_self_attn": "self_attn",
            "layer_cross_attn": None,
            "attn_k_proj": "k_proj",
            "attn_q_proj": "q_proj",
            "attn_v_proj": "v_proj",
            "attn_o_proj": self.out_projection,
            "layer_intermediate_proj": first,
            "layer_output_proj": last,
            "layer_pre_self_attn": "self_attn.q_proj",
            "layer_pre_ffn": first,
        }


LLAMA = Family("", "o_proj", ("mlp.gate_proj", "mlp.down_proj"))
HOMES = {"opt": Family("decoder.", "out_proj", ("fc1", "fc2")), "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA}


def write_adapters(recommender: Recommender, folder: Path, options: ExportOptions) -> None:
    """The adapter, its interface, ``load.py``, ``README.md``, and the other trained parts.

    Raises:
        ExportError: for the context site, unless ``options.sites`` excludes it, and for placements it cannot express.
    """
    adapter = adapter_weights(recommender, FORM, options.sites)
    _refuse(adapter)
    config = recommender.model.backbone.config
    home = HOMES[config.model_type]
    record = {
        "name": NAME,
        "config": union(adapter, config.hidden_size, config.num_hidden_layers),
        "hidden_size": config.hidden_size,
        "model_class": type(recommender.model.backbone.model).__name__,
        "model_name": recommender.settings.backbone.name,
        "model_type": config.model_type,
        "version": f"adapters.{LIBRARY}",
    }
    interface = {"interface": home.interface(), "model_type": config.model_type, "version": f"adapters.{LIBRARY}"}
    write_model_files(recommender, adapter, folder)
    for name, content in {CONFIG_NAME: record, INTERFACE_NAME: interface}.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(copied(weights(adapter.adapters, home.root)), folder / WEIGHTS_NAME)
    for name, text in {"load.py": _template("load.py.txt"), "README.md": _readme(recommender, adapter)}.items():
        (folder / name).write_text(text, encoding="utf-8")


def _refuse(found: AdapterWeights) -> None:
    """Reject what two sites per layer cannot express, rather than drop it."""
    if CONTEXT in found.sites:
        raise ExportError(
            f"adapters {LIBRARY} has two sites per layer and does not support the site {CONTEXT}, its second attention and its "
            f"router; exclude it with --sites {','.join(TWO_SITES)} (which is another model and needs further training), "
            "or use --format snippet, hf or torch"
        )
    settings = found.settings
    if settings.rec_adapter_site is not RecommendationSite.FFN:
        raise ExportError(
            f"adapters {LIBRARY} does not support model.rec_adapter_site={settings.rec_adapter_site}; "
            "train with ffn, or use --format snippet"
        )
    names = site_names([layer - 1 for layer in found.replaced], found.sites)
    lora = [name for name, choice in zip(names, found.layout.flat, strict=True) if choice.lora]
    if lora:
        raise ExportError(
            f"{', '.join(lora)}: --format adapters does not write LoRA; use --format snippet, hf or torch"
        )
    parallel = [
        n for n, choice in zip(names, found.layout.flat, strict=True) if choice.parallel and choice.join is Join.MODEL
    ]
    if parallel and (settings.parallel_reduce is not ParallelReduce.SUM or settings.parallel_residual):
        raise ExportError(
            f"{', '.join(parallel)}: a parallel adapter of adapters {LIBRARY} is SA + B(h), which this model's is not; "
            "train with --set model.parallel_reduce=sum --set model.parallel_residual=false, or use --format snippet"
        )


def union(found: AdapterWeights, width: int, layers: int) -> dict[str, Any]:
    """The library's ``ConfigUnion``: a ``BnConfig`` per site and kind of adapter, the other layers in ``leave_out``."""
    configs = []
    for column, site in enumerate(found.sites):
        chosen = dict(zip(found.replaced, (group[column] for group in found.layout.groups), strict=True))
        for choice in dict.fromkeys(choice for choice in chosen.values() if choice.active):
            left_out = [layer for layer in range(layers) if chosen.get(layer + 1) != choice]
            configs.append(_config(found, site, choice, width=width, left_out=left_out))
    return {"architecture": "union", "configs": configs}


def _config(found: AdapterWeights, site: str, choice: Choice, *, width: int, left_out: list[int]) -> dict[str, Any]:
    """The non-default fields of a ``BnConfig``."""
    return {
        "architecture": None,
        **{place: named == site for named, place in PLACES.items()},
        "reduction_factor": reduction_factor(width, choice.width or found.settings.bottleneck),
        "non_linearity": ACTIVATIONS[found.settings.activation],
        "is_parallel": choice.parallel,
        "leave_out": left_out,
        "original_ln_before": False,
        "original_ln_after": True,
        "residual_before_ln": True,
        "adapter_residual_before_ln": False,
        "ln_before": False,
        "ln_after": False,
        "scaling": 1.0,
    }


def reduction_factor(width: int, bottleneck: int) -> float:
    """The reduction factor: the library takes ``width // factor`` in floats, so half a unit is added against rounding down."""
    return width / bottleneck if width % bottleneck == 0 else width / (bottleneck + 0.5)


def weights(adapters: dict[str, Tensor], root: str) -> dict[str, Tensor]:
    """The adapters by the library's names in the bare model.

    ``layers.0.adapters.causal_adapter.down.weight`` becomes
    ``layers.0.attention_adapters.adapters.dasearch.adapter_down.0.weight``.
    """
    renamed = {}
    for name, tensor in adapters.items():
        _, layer, _, site, projection, kind = name.split(".")
        module = f"{root}layers.{layer}.{MODULES[site]}.adapters.{NAME}.{PROJECTIONS[projection]}"
        renamed[f"{module}.{kind}"] = tensor
    return renamed


def _template(name: str) -> str:
    return (files("dasearch.export") / "templates" / "adapters" / name).read_text(encoding="utf-8")


def _readme(recommender: Recommender, found: AdapterWeights) -> str:
    whole = found.settings.variation is Variation.BASE
    return _template("README.md").format(
        layout=found.layout,
        sites=" and ".join(found.sites),
        replaced=", ".join(map(str, found.replaced)),
        model=found.settings.label,
        study=recommender.settings.name,
        library=LIBRARY,
        row=row_in_words(recommender),
        left_out="The whole trained model is included." if whole else LEFT_OUT,
    )


LEFT_OUT = """The site context with its second attention and router, and the collaborative keys that it reads, are excluded, as
`--sites` requested: this is not the trained model, and it needs further training before it recommends."""

"""``--format adapters``, opened with AdapterHub's own library in a separate environment, because it pins another transformers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dasearch.errors import ExportError
from dasearch.export import ExportOptions, export
from dasearch.export.adapterhub import reduction_factor, union
from dasearch.export.inserted import adapter_weights
from dasearch.layout import CHOICES, NONE, Choice, Layout
from dasearch.models.insertion import TWO_SITES, apply_layout
from dasearch.training.recommender import Recommender
from tests.conftest import FAMILIES, VOCABULARY, seeded, tiny_model
from tests.export.darec_models import darec_model, rows_of

HE = {"parallel_reduce": "sum", "parallel_residual": False}  # He et al. 2022: SA + B(h), the library's own form
OPEN = """
import json, runpy, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoTokenizer

found = {}
for folder in map(Path, sys.argv[1:]):
    model, head = runpy.run_path(str(folder / "load.py"))["load"]()
    given = load_file(folder / "given.safetensors")
    far = lambda a, b: float((a - b)[given["real"]].abs().max())
    with torch.no_grad():
        hidden = model(given["tokens"]).last_hidden_state
        scores = head(hidden)
        model.set_active_adapters(None)
        without = model(given["tokens"]).last_hidden_state
    model.train_adapter("dasearch")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    found[folder.name] = {
        "hidden": far(hidden, given["hidden"]),
        "scores": far(scores, given["scores"]),
        "without": far(without, given["hidden"]),
        "trained": len(trained),
        "words": AutoTokenizer.from_pretrained(folder / "backbone")("w5 w9").input_ids,
    }
print(json.dumps(found))
"""


def random_cases() -> dict[str, Recommender]:
    """Random layouts over families, depths, replacement frequencies and activations."""
    found = {}
    for seed, (family, (layers, every), activation) in enumerate(
        (family, depth, activation)
        for family in FAMILIES
        for depth, activation in (((2, 1), "relu"), ((4, 1), "gelu"), ((4, 2), "none"), ((6, 3), "relu"))
    ):
        layout = str(Layout.random(layers // every, generator=seeded(seed)))
        bottleneck = 4 if seed % 2 else 5  # 5 does not divide the width
        options = {"layers": layers, "every": every, "activation": activation, "bottleneck": bottleneck, **HE}
        found[f"{family}-{layers}-{every}-{layout}"] = darec_model(family, layout, seed=seed, **options)
    return found


def base_cases() -> dict[str, Recommender]:
    return {f"{family}-base": darec_model(family, "SSS-SSS", variation="darec-base") for family in FAMILIES}


def states_of_apply_layout(recommender: Recommender, tokens: torch.Tensor) -> torch.Tensor:
    """The two-site model in this transformers."""
    found, backbone = adapter_weights(recommender, "adapters", TWO_SITES), recommender.model.backbone
    model = tiny_model(backbone.name, len(backbone.blocks))
    model.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)
    model.get_input_embeddings().weight.data[VOCABULARY:] = found.parts["special"].detach()
    options = {"activation": found.settings.activation, "bottleneck": found.settings.bottleneck, **HE}
    apply_layout(model, found.layout, sites=found.sites, replaced=found.replaced, weights=found.adapters, **options)
    with torch.no_grad():
        return model(tokens).last_hidden_state


def write_case(folder: Path, recommender: Recommender, *, base: bool) -> Path:
    """The export, with rows and the states to compare."""
    out = export(recommender, "adapters", folder, ExportOptions(None if base else TWO_SITES))
    batch, model = rows_of(recommender), recommender.model
    with torch.no_grad():
        if base:
            hidden = model.hidden(batch.rows, model.layout_tensor(recommender.layout))
        else:
            hidden = states_of_apply_layout(recommender, batch.rows.tokens)
        expected = {"hidden": hidden, "scores": model.logits(hidden)}
    save_file({**expected, "tokens": batch.rows.tokens, "real": batch.rows.segments >= 0}, out / "given.safetensors")
    return out


@pytest.mark.slow
def test_the_library_computes_the_same_states(tmp_path: Path, adapterhub: Path) -> None:
    cases, bases = random_cases(), base_cases()
    folders = [write_case(tmp_path / name, case, base=False) for name, case in cases.items()]
    folders += [write_case(tmp_path / name, case, base=True) for name, case in bases.items()]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(adapterhub), "-c", OPEN, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=alone)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {*cases, *bases}
    for name, one in found.items():
        recommender = cases.get(name) or bases[name]
        assert max(one["hidden"], one["scores"]) <= 1e-5, name
        assert one["without"] > 0.1, name
        assert one["trained"] == 2 * 4 * len(recommender.model.replaced), name  # sites, tensors of an adapter
        assert one["words"] == [5, 9]


def test_what_it_writes(tmp_path: Path) -> None:
    out = export(darec_model("opt", "SSS-SSS", variation="darec-base"), "adapters", tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "adapter.safetensors",
        "adapter_config.json",
        "adapter_interface.json",
        "backbone",
        "items.json",
        "layout.json",
        "load.py",
        "recommender.safetensors",
    }
    assert "The whole trained model is included." in (out / "README.md").read_text()
    left_out = export(darec_model("opt", "SSS-SSS"), "adapters", tmp_path / "left-out", ExportOptions(TWO_SITES))
    assert "The site context with its second attention and router" in (left_out / "README.md").read_text()
    assert "decoder.layers.1.output_adapters.adapters.dasearch.adapter_up.bias" in load_file(
        out / "adapter.safetensors"
    )


choices = st.sampled_from([*(one for one in CHOICES.values() if not one.lora), Choice("narrow", "n", width=2)])


@settings(deadline=None)
@given(layout=st.lists(st.tuples(choices, choices), min_size=1, max_size=6), every=st.integers(1, 3))
def test_each_place_has_one_configuration(layout: list[tuple[Choice, Choice]], every: int) -> None:
    """The library refuses a place that two configurations claim."""
    layers = every * len(layout)
    base = adapter_weights(darec_model("opt", "SSS-SSS", **HE), "adapters", TWO_SITES)
    replaced = tuple(range(every, layers + 1, every))
    configs = union(base._replace(layout=Layout(tuple(layout)), replaced=replaced), 32, layers)["configs"]
    for layer in range(layers):
        for column, place in enumerate(("mh_adapter", "output_adapter")):
            placed = [one for one in configs if one[place] and layer not in one["leave_out"]]
            choice = layout[layer // every][column] if (layer + 1) % every == 0 else NONE
            assert [one["is_parallel"] for one in placed] == [choice.parallel] * choice.active
            units = [int(32 // one["reduction_factor"]) for one in placed]
            assert units == [choice.width or base.settings.bottleneck] * choice.active


@given(width=st.integers(1, 4096), bottleneck=st.integers(1, 512))
def test_the_bottleneck_survives_the_librarys_division(width: int, bottleneck: int) -> None:
    assert int(width // reduction_factor(width, bottleneck)) == bottleneck


@pytest.mark.parametrize(
    ("layout", "changes", "sites", "sentence"),
    [
        ("SSS-SSS", {}, None, "does not support the site context.*exclude it with --sites causal,recommendation"),
        ("SSP-PSS", {}, TWO_SITES, "layer01.recommendation, layer02.causal: a parallel adapter .* SA \\+ B\\(h\\)"),
        ("SSP-SSS", {"parallel_reduce": "sum"}, TWO_SITES, "model.parallel_residual=false"),
        (
            "LSS-SLS",
            {},
            TWO_SITES,
            "layer01.causal: --format adapters does not write LoRA; use --format snippet, hf or torch",
        ),
        (
            "SSS-SSS",
            {"rec_adapter_site": "router_output"},
            TWO_SITES,
            "does not support model.rec_adapter_site=router_out",
        ),
        ("SSS-SSS", {"variation": "llmrec"}, None, "model.variation=llmrec has no adapters, which --format adapters"),
    ],
)
def test_refused(
    tmp_path: Path, layout: str, changes: dict[str, object], sites: tuple[str, ...] | None, sentence: str
) -> None:
    with pytest.raises(ExportError, match=sentence):
        export(darec_model("opt", layout, **changes), "adapters", tmp_path / "out", ExportOptions(sites))
    assert not list(tmp_path.iterdir())

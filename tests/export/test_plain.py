"""The plain PyTorch file gives our scores, for every model, backbone, encoder and reading of the papers."""

from __future__ import annotations

import ast
import dataclasses
import tempfile
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dasearch.errors import ExportError
from dasearch.export import export
from dasearch.layout import Layout
from dasearch.layout_file import read_layout
from dasearch.models.id_encoders import ENCODERS
from dasearch.models.named import NAMED, available
from dasearch.models.ra_rec import RARec
from dasearch.training.recommender import Recommender
from tests.conftest import ALL_FAMILIES
from tests.export.made import QUESTIONS, edited, made, opened, our_scores

CLOSE = 1e-5
SAME_KERNELS = 0.0
Answers = list[Tensor]


def darec(**model: object) -> str:
    return repr({"model": model})


def prefixed(kind: str, encoder: str = "comirec-sa", pool: str = "mean", **model: object) -> str:
    return repr({"model": {"kind": kind, **model}, "encoder": {"name": encoder, "pool": pool}})


def e4s_rec(encoder: str = "sasrec", **model: object) -> str:
    return repr({"model": {"kind": "e4s-rec", **model}, "encoder": {"name": encoder}})


def added(encoder: str, **model: object) -> str:
    return repr({"model": {"encoder_scores": 0.5, **model}, "encoder": {"name": encoder, "width": 8, "epochs": 1}})


BY_PRODUCT = [name for name, entry in sorted(ENCODERS.items()) if entry.by_product]
KEYED = darec(item_ids="embedding", item_key=True, user_key="history", head_states="whitened")
CASES = [  # family, settings, layout, how far scores may be apart
    *((family, darec(), "SPS-PPS", CLOSE) for family in ("opt", "llama")),
    ("opt", darec(variation="both-causal", collab_proj="per_layer", activation="gelu"), "PSP-SPP", CLOSE),
    ("llama", darec(parallel_reduce="sum", parallel_residual=False, activation="none"), "PPP-SPP", CLOSE),
    ("opt", darec(rec_adapter_site="router_output", collaborative="mf", attn_scale="model"), "PPP-SSP", CLOSE),
    ("llama", darec(parallel_reduce="sum", ncf_embedding="concat", variation="variation-2"), "SSS-SSS", CLOSE),
    *((family, darec(variation=v), "SSS-SSS", SAME_KERNELS) for family in ("opt", "llama") for v in ("darec-base", "llmrec")),
    ("opt", darec(), "PPS", CLOSE),  # r = 2
    *((family, changes, "nNA-qPN", CLOSE) for family in ("opt", "llama") for changes in (darec(), KEYED)),
    ("opt", darec(rec_adapter_site="router_output"), "NAq-SnP", CLOSE),
    *((family, changes, "LtN-nLS", CLOSE) for family in ("opt", "llama") for changes in (darec(lora_alpha=9.0), KEYED)),
    ("opt", darec(variation="both-causal", lora_rank=3), "LLN-SPP", CLOSE),
    ("llama", darec(rec_adapter_site="router_output"), "tNS", CLOSE),  # r = 2, no context branch
    ("opt", KEYED, "SNP-PNS", CLOSE),  # no context branch, so no keys
    ("llama", darec(), "NNN-NNN", CLOSE),
    *((family, KEYED, "SPS-PPS", CLOSE) for family in ("opt", "llama")),
    ("opt", darec(item_ids="collaborative", user_key="history", collab_proj="per_layer"), "PSP-SPP", CLOSE),
    ("llama", darec(item_key=True, head_states="whitened", variation="both-causal"), "PSP-SPP", CLOSE),
    ("opt", darec(user_key="none", item_ids="embedding"), "PSP-SPP", CLOSE),
    ("opt", darec(head_text=True, router_start=0.9), "PSP-SPP", CLOSE),
    ("llama", darec(head_text=True, head_states="whitened"), "PSP-SPP", CLOSE),
    ("llama", darec(item_ids="collaborative", variation="llmrec", head_states="whitened"), "SSS-SSS", CLOSE),
    *(("opt", prefixed("idle", encoder), "SPS-PSP", CLOSE) for encoder in sorted(ENCODERS)),
    *(("llama", prefixed("ra-rec", encoder), "SPS-PSP", CLOSE) for encoder in sorted(ENCODERS)),
    *((family, prefixed("idle", "sasrec"), "SPS-PSP", SAME_KERNELS) for family in ALL_FAMILIES),
    *((family, prefixed("ra-rec", "gru4rec"), "PPS-SPP", CLOSE) for family in ALL_FAMILIES),
    ("bert", prefixed("idle", refine="scalar_gate", head="dot_item_text"), "SPS-PSP", CLOSE),
    ("bert", repr({"model": {"kind": "idle", "pool": "first"}}), "SPS-PSP", CLOSE),
    ("llama", prefixed("idle", pool="as_tokens", refine="concat", parallel_reduce="sum"), "PSS-SSS", CLOSE),
    ("opt", prefixed("idle", "comirec-dr", pool="last_item", refine="none", projection="shared"), "PSS-SSS", CLOSE),
    ("opt", repr({"model": {"kind": "idle", "pool": "mean"}, "encoder": {"name": "mf"}}), "SPS", CLOSE),
    ("bert", repr({"model": {"kind": "ra-rec", "instruction": False, "item_bias": "log-frequency"}}), "PPS-SSS", CLOSE),
    *((family, added(encoder), "SPS-PPS", CLOSE) for family, encoder in zip(("opt", "llama") * 3, BY_PRODUCT, strict=True)),
    ("opt", added("sasrec", variation="llmrec", item_ids="encoder"), "SSS-SSS", CLOSE),
    *(
        ("opt", prefixed(kind, encoder, encoder_scores=0.5, **more), "SPS-PSP", CLOSE)
        for kind in ("idle", "ra-rec")
        for encoder, more in (
            ("sasrec", {}),
            ("comirec-sa", {}),
            ("gru4rec", {"variation": "frozen"}),
        )
    ),
    ("opt", prefixed("ra-rec", variation="frozen"), "SSS-SSS", CLOSE),
    ("bert", prefixed("idle", variation="frozen"), "SSS-SSS", SAME_KERNELS),
    *((family, e4s_rec(), letters, CLOSE) for family in ("opt", "llama") for letters in ("SP-PS", "NA-qS", "PN", "LN-SP")),
    ("opt", e4s_rec("comirec-sa", encoder_scores=0.5, parallel_reduce="sum", activation="gelu"), "SP-PP", CLOSE),
    ("opt", e4s_rec(variation="frozen"), "SS-SS", CLOSE),
]  # fmt: skip


def written(recommender: Recommender, folder: Path) -> Answers:
    """Scores of the generated file: each question alone, then all of them in one padded batch."""
    out = export(recommender, "torch", folder / "out")
    return answers(out)


def answers(out: Path) -> Answers:
    module = opened(out / "recommender.py")
    model, catalogue = module.load(out)
    with torch.inference_mode():
        alone = [model(**module.batch_of(model.c, catalogue, [h], [u]))[0] for h, u in QUESTIONS]
        together = model(**module.batch_of(model.c, catalogue, *map(list, zip(*QUESTIONS, strict=True))))
    return [*alone, *together]


def apart(recommender: Recommender, found: Answers) -> float:
    """The largest difference from our scores, relative where they are large; a padded batch may be 1e-5 apart in any case."""
    ours = [our_scores(recommender, history, user) for history, user in QUESTIONS]
    n, size = len(QUESTIONS), max(1.0, *(float(scores.abs().max()) for scores in ours))
    assert max(float((a - b).abs().max()) for a, b in zip(ours, found[n:], strict=True)) <= CLOSE * size
    return max(float((a - b).abs().max()) for a, b in zip(ours, found[:n], strict=True)) / size


@pytest.mark.parametrize(("family", "changes", "letters", "bound"), CASES)
def test_scores_are_ours(family: str, changes: str, letters: str, bound: float, tmp_path: Path) -> None:
    recommender = made(family, changes, letters)
    assert apart(recommender, written(recommender, tmp_path)) <= bound


@pytest.mark.parametrize(
    ("name", "layers", "changes", "letters"),
    [
        ("smollm2-135m", 2, darec(), "SPS-PPS"),
        ("minilm-l6", 6, prefixed("idle", "sasrec"), "SPS-PSP-SSS-PPP-SPP-PSS"),
        ("minilm-l6", 6, prefixed("ra-rec", "gru4rec"), "SPS-PSP-PSS"),
    ],
)
def test_scores_over_real_weights_are_ours(name: str, layers: int, changes: str, letters: str, tmp_path: Path) -> None:
    if not available(name):
        pytest.skip(f"{name} is not installed: {NAMED[name].get}")
    recommender = made(name, changes, letters, layers=layers)
    assert apart(recommender, written(recommender, tmp_path)) <= CLOSE


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from([darec(), prefixed("idle", "gru4rec"), prefixed("ra-rec", "mf")]),
    groups=st.integers(1, 3),
    every=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_layout_at_any_depth(kind: str, groups: int, every: int, seed: int) -> None:
    letters = str(Layout.random(groups, generator=torch.Generator().manual_seed(seed)))
    recommender = made("opt", kind, letters, layers=groups * every)
    with tempfile.TemporaryDirectory() as folder:
        assert apart(recommender, written(recommender, Path(folder))) <= CLOSE
        assert read_layout(Path(folder) / "out") == recommender.layout == Layout.parse(letters)


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [
        (darec(), "SPS-PPS", "PPS-PPS"),
        (darec(), "SPS-PPS", "SPS-PSS"),
        (darec(), "SPS-PPS", "SPS-PPP"),
        (prefixed("idle"), "SSS-SSS", "PSS-SSS"),
        (prefixed("idle"), "SSS-SSS", "SSS-SPS"),
        (prefixed("ra-rec"), "SSS-SSS", "SSS-PSS"),
    ],
)
def test_the_layout_is_read_from_the_config(changes: str, before: str, after: str, tmp_path: Path) -> None:
    """Another layout in ``config.json`` is another model: the one that we have with that layout."""
    recommender = made("opt", changes, before)
    out = export(recommender, "torch", tmp_path / "out")
    edited(out / "config.json", layout=after)
    found = answers(out)
    ours = our_scores(recommender, *QUESTIONS[0])
    assert float((found[0] - ours).abs().max()) > 1e-3
    assert apart(dataclasses.replace(recommender, layout=Layout.parse(after)), found) <= CLOSE


@pytest.mark.parametrize("letters", ["SSS-SSS", "SPS-PSP"])
def test_the_item_tower_goes_along(letters: str, tmp_path: Path) -> None:
    """Items can be encoded again, also under another layout."""
    recommender = made("bert", prefixed("ra-rec"), "SPS-PSP")
    out = export(recommender, "torch", tmp_path / "out")
    edited(out / "config.json", layout=letters)
    module = opened(out / "recommender.py")
    model, catalogue = module.load(out)
    layout = recommender.model.layout_tensor(Layout.parse(letters))
    with torch.inference_mode():
        again = model.encode_items(**module.item_batch_of(model.c, catalogue, range(len(recommender.items))))
        ours = cast(RARec, recommender.model).catalogue_states(recommender.catalogue.item_rows, layout)
    torch.testing.assert_close(again, ours, atol=CLOSE, rtol=0)
    assert (float((again - model.item_states).abs().max()) > 1e-3) == (letters != str(recommender.layout))


@pytest.mark.parametrize(("family", "changes", "letters", "bound"), CASES[::4])
def test_the_file_is_short_and_imports_torch_alone(
    family: str, changes: str, letters: str, bound: float, tmp_path: Path
) -> None:
    text = (export(made(family, changes, letters), "torch", tmp_path / "out") / "recommender.py").read_text()
    imported = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported == {"functools", "json", "pathlib", "safetensors", "sys", "torch", "types"}
    lines = text.splitlines()
    assert len(lines) < 340
    assert max(map(len, lines)) <= 130
    assert not {"{{", "{%"} & set(text.split())


def test_what_the_file_cannot_say_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"model\.mask_mode=post_softmax .* train with --set model\.mask_mode=additive"
    ):
        export(made("opt", darec(mask_mode="post_softmax")), "torch", tmp_path / "out")
    odd = made("llama")
    odd.model.backbone.config.hidden_act = "mish"
    with pytest.raises(ExportError, match="the backbone's activation 'mish'"):
        export(odd, "torch", tmp_path / "out")
    turned = made("llama")
    turned.model.backbone.model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(ExportError, match="rotary positions of kind 'dynamic'"):
        export(turned, "torch", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

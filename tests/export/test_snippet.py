"""``--format snippet``: what it prints builds the layout, and what it writes computes dasearch's own states."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dasearch.errors import ExportError
from dasearch.export import ExportOptions, export
from dasearch.export.formats import FORMATS
from dasearch.layout import READS
from dasearch.models.insertion import TWO_SITES, AdapterHooks
from dasearch.training.recommender import Recommender
from tests.export.darec_models import ITEMS, USERS, darec_model, rows_of
from tests.training.studies import small_settings

RUN = """
import json, runpy, sys, torch
from pathlib import Path
from safetensors.torch import load_file

torch.set_num_threads(1)  # as the tests: sums depend on it
found = {}
for folder in map(Path, sys.argv[1:]):
    names, given = runpy.run_path(str(folder / "snippet.py")), load_file(folder / "given.safetensors")
    rows = {}
    if "segments" in given:
        rows = {"segment_ids": given["segments"], "collaborative_keys": names["parts"]["user_keys"][given["users"]]}
    with torch.no_grad():
        hidden = names["model"](given["tokens"], **rows).last_hidden_state
        far = lambda a, b: float((a - b)[given["real"]].abs().max())
        found[folder.name] = far(hidden, given["hidden"]), far(names["head"](hidden), given["scores"])
print(json.dumps(found))
"""
CASES = {
    "opt-three": {"family": "opt", "layout": "PSP-SPS"},
    "llama-three-r2": {"family": "llama", "layout": "SPP-PSS", "layers": 4, "every": 2, "collab_proj": "per_layer"},
    "opt-mf": {"family": "opt", "layout": "PPP-SPS", "collaborative": "mf", "activation": "gelu"},
    "opt-router": {"family": "opt", "layout": "SSP-PSP", "rec_adapter_site": "router_output"},
    "opt-choices": {"family": "opt", "layout": "nNA-qPN"},
    "opt-lora": {"family": "opt", "layout": "LtN-SLA", "lora_rank": 4, "lora_alpha": 9.0},
    "llama-lora": {"family": "llama", "layout": "tLS-LNP"},
    "opt-frozen": {"family": "opt", "layout": "NNN-NNN"},
    "opt-base": {"family": "opt", "layout": "SSS-SSS", "variation": "darec-base"},
    "llama-base": {"family": "llama", "layout": "SSS-SSS", "variation": "darec-base"},
}


def given_and_expected(recommender: Recommender) -> dict[str, torch.Tensor]:
    """Rows, and what the trained model makes of them."""
    batch, model = rows_of(recommender), recommender.model
    with torch.no_grad():
        hidden = model.hidden(batch.rows, model.layout_tensor(recommender.layout), model.user_keys(batch.users))
        found = {"tokens": batch.rows.tokens, "hidden": hidden, "scores": model.logits(hidden)}
    found["real"] = batch.rows.segments >= 0
    if model.cf is not None:
        found |= {"segments": batch.rows.segments, "users": batch.users}
    return found


@pytest.mark.slow
def test_states_of_the_snippet_are_those_of_the_trained_model(tmp_path: Path) -> None:
    folders = []
    for name, case in CASES.items():
        recommender = darec_model(**case)
        folders.append(export(recommender, "snippet", tmp_path / name))
        save_file(given_and_expected(recommender), tmp_path / name / "given.safetensors")
    command = [sys.executable, "-c", RUN, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == set(CASES)
    for name, (states, scores) in found.items():
        to_the_last_digit = name.startswith("opt") and name not in (
            "opt-choices",
            "opt-lora",
        )  # narrow adapters are sums of another length
        assert max(states, scores) <= (0 if to_the_last_digit else 1e-5), name


def test_what_it_writes(tmp_path: Path) -> None:
    out = export(darec_model("opt", "PSP-SPS"), "snippet", tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {
        "adapters.safetensors",
        "backbone",
        "items.json",
        "layout.json",
        "recommender.safetensors",
        "snippet.py",
        "users.json",
    }
    assert len(json.loads((out / "items.json").read_text())) == ITEMS
    assert json.loads((out / "users.json").read_text()) == [f"u{place}" for place in range(USERS)]
    assert set(load_file(out / "recommender.safetensors")) == {"special", "head.weight", "head.bias", "user_keys"}


def test_sites_leave_out_the_others(tmp_path: Path) -> None:
    out = export(darec_model("opt", "PSP-SPS"), "snippet", tmp_path / "out", ExportOptions(TWO_SITES))
    names = load_file(out / "adapters.safetensors")
    assert {name.split(".")[3] for name in names} == {"causal_adapter", "recommendation_adapter"}
    assert "user_keys" not in load_file(out / "recommender.safetensors")
    assert 'Layout.parse("PP-SS")' in (out / "snippet.py").read_text()


def test_what_it_prints_builds_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = darec_model("opt", "PSP-SPS", layers=4, every=2, parallel_reduce="sum")
    recommender.model.backbone.model.save_pretrained(tmp_path / "backbone")
    text = FORMATS["snippet"].text(recommender, ExportOptions())
    assert 'from_pretrained("backbone")  # tiny-opt: `backbone` in the trained' in text
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(text, "snippet", "exec"), names)
    placed = [module for module in names["model"].modules() if isinstance(module, AdapterHooks)]
    assert [module.layout[:, READS].tolist() for module in placed] == [[1, 0, 1], [0, 1, 0]]
    assert {module.settings.parallel_reduce for module in placed} == {"sum"}
    assert [hasattr(layer, "adapters") for layer in names["model"].decoder.layers] == [False, True, False, True]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"variation": "llmrec"}, "model.variation=llmrec has no adapters, which --format snippet cannot express; use"),
        ({"attn_scale": "model"}, "model.attn_scale=model changes the frozen attention"),
        (
            {"mask_mode": "post_softmax"},
            "model.mask_mode=post_softmax lets a row's padding, and so its batch, change its scores",
        ),
        ({"item_ids": "embedding"}, "model.item_ids=embedding adds vectors to the token embeddings"),
        ({"item_key": True}, "a key for each item"),
        ({"user_key": "history"}, "a key for each item"),
        ({"variation": "both-causal"}, "the context branch of model.variation=both-causal has a causal mask"),
    ],
)
def test_what_no_adapter_says_is_refused(tmp_path: Path, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        export(darec_model("opt", "SSS-SSS", **settings), "snippet", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sites", "sentence"),
    [
        (("causel",), "no site 'causel'; did you mean causal"),
        (("user",), "site 'user' is of ra-rec"),
        (("causal",), "causal make no layer"),
    ],
)
def test_unknown_sites_are_refused(tmp_path: Path, sites: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        export(darec_model("opt", "SSS-SSS"), "snippet", tmp_path / "out", ExportOptions(sites))


@pytest.mark.parametrize("form", ["snippet", "adapters"])
@pytest.mark.parametrize("kind", ["idle", "ra-rec", "e4s-rec"])
def test_models_that_read_id_vectors_are_refused(tmp_path: Path, kind: str, form: str) -> None:
    settings = small_settings(model={"kind": kind})
    with pytest.raises(ExportError, match=f"{kind} reads vectors of an ID encoder, .* use --format hf or torch"):
        export(SimpleNamespace(model=None, settings=settings), form, tmp_path / "out")


def test_a_site_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    three = ("causal", "context", "recommendation")
    with pytest.raises(ExportError, match="the model has no site context; choose causal, recommendation"):
        export(darec_model("opt", "SSS-SSS", variation="darec-base"), "snippet", tmp_path / "out", ExportOptions(three))

"""layout.json: validation, and evolution of its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dasearch.errors import LayoutError
from dasearch.layout import LOW_RANK, SERIAL, SITES, Choice, Layout, ModelKind, replaced_layers
from dasearch.layout_file import LayoutFile, read_layout

CONTENT: dict[str, Any] = {
    "schema_version": "1.0", "model": "darec", "backbone": "tiny-opt", "layers": 2, "replaced": [1, 2],
    "sites": ["causal", "context", "recommendation"], "layout": "SPS-PPS", "bottleneck": 8, "activation": "relu",
    "study": "s", "seed": 0, "versions": {},
}  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "layout.json"
    path.write_text(json.dumps({**CONTENT, **changes}))
    return path


def test_a_layout_is_read_from_its_file_or_folder(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert read_layout(path) == read_layout(tmp_path) == Layout.parse("SPS-PPS")


@given(
    kind=st.sampled_from(ModelKind), every=st.integers(1, 3), groups=st.integers(1, 8), seed=st.integers(0, 2**32 - 1)
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, kind: ModelKind, every: int, groups: int, seed: int
) -> None:
    layout = Layout.random(groups, len(SITES[kind]), generator=torch.Generator().manual_seed(seed))
    replaced = [layer + 1 for layer in replaced_layers(groups * every, every)]
    file = LayoutFile.model_validate(
        {
            **CONTENT,
            "sites": list(SITES[kind]),
            "layers": groups * every,
            "replaced": replaced,
            "layout": str(layout),
        }
    )
    path = tmp_path_factory.mktemp("layouts") / "layout.json"
    path.write_text(file.text())
    assert LayoutFile.read(path) == file
    assert read_layout(path) == layout


def test_files_from_before_minor_versions_are_read(tmp_path: Path) -> None:
    assert LayoutFile.read(written(tmp_path, schema_version=1)).schema_version == "1.0"


def test_lora_is_written_and_read(tmp_path: Path) -> None:
    thin = {"name": "thin", "letter": "t", "width": 4, "lora": True}
    choices = [{"name": "serial", "letter": "S"}, {"name": "lora", "letter": "L", "lora": True}, thin]
    path = written(tmp_path, schema_version="1.2", layout="LtS-SSS", choices=choices, lora_rank=8, lora_alpha=16.0)
    found = LayoutFile.read(path)
    assert found.parsed().flat[:3] == (LOW_RANK, Choice("thin", "t", width=4, lora=True), SERIAL)
    path.write_text(found.text())
    assert LayoutFile.read(path) == found


def test_a_file_of_1_1_has_no_lora(tmp_path: Path) -> None:
    choices = [{"name": "serial", "letter": "S"}, {"name": "parallel", "letter": "P", "parallel": True}]
    found = LayoutFile.read(written(tmp_path, schema_version="1.1", choices=choices))
    assert (found.parsed(), found.lora_rank) == (Layout.parse("SPS-PPS"), None)
    with pytest.raises(LayoutError, match="written with S, P and -"):
        LayoutFile.read(written(tmp_path, schema_version="1.1", choices=choices, layout="LPS-PPS"))


def test_a_later_minor_version_may_add_fields(tmp_path: Path) -> None:
    found = LayoutFile.read(written(tmp_path, schema_version="1.7", weather="fine"))
    assert (found.schema_version, found.layout) == ("1.7", "SPS-PPS")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": "2.0"}, r"schema version 2\.0 and this dasearch reads 1\.x; update dasearch"),
        ({"schema_version": "one"}, "is not of the form MAJOR.MINOR"),
        ({"layuot": "SSS-SSS"}, "version 1.0 has no field 'layuot'; did you mean layout"),
        ({"layout": "SPS"}, "the model has 2 of 3"),
        ({"layout": "SPS-P?S"}, "layout: "),
        ({"layout": "SPS-PNS"}, "written with S, P and -, as in SPS-PPS; 'SPS-PNS' has 'N'"),  # 1.0 has no choices
        ({"layout": "SP-PP"}, "the model has 2 of 3"),
        ({"replaced": [2, 1]}, "must be an ascending list of layers from 1 to 2"),
        ({"replaced": [2, 3]}, "must be an ascending list of layers from 1 to 2"),
        ({"sites": ["a", "b", "c"]}, "sites a, b, c belong to no known model"),
        ({"seed": "many"}, "seed: "),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        read_layout(written(tmp_path, **changes))


def test_missing_damaged_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="cannot be read"):
        read_layout(tmp_path)
    path = written(tmp_path)
    path.write_text(path.read_text()[:40])
    with pytest.raises(LayoutError, match="is truncated"):
        read_layout(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LayoutError, match="is not a layout file"):
        read_layout(path)
    path.write_text("[1]")
    with pytest.raises(LayoutError, match="it is not a JSON object"):
        read_layout(path)

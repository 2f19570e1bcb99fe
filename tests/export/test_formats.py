"""dasearch export: written atomically, with one-sentence errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from dasearch.errors import ExportError, ModelFolderError
from dasearch.export import FORMATS, ExportOptions, export
from dasearch.export.formats import Format
from dasearch.export.layout import SCHEMAS, published_schema, schema_text
from dasearch.layout_file import read_layout
from dasearch.training.recommender import Recommender, load
from tests.export.made import edited, made, made_folder, opened


def test_layout_is_written_with_the_schema_that_is_published(tmp_path: Path) -> None:
    recommender = made("opt", "{}", "SPS-PPS")
    out = export(recommender, "layout", tmp_path / "out")
    content = json.loads((out / "layout.json").read_text())
    (schema,) = out.glob("*.schema.json")
    jsonschema.validate(content, json.loads(schema.read_text()))
    assert read_layout(out) == recommender.layout
    for wrong in ({"layout": "S?S"}, {"replaced": []}, {"seed": "many"}, {"schema_version": "2.0"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**content, **wrong}, published_schema("layout"))
    jsonschema.validate({**content, "schema_version": "1.9", "more": 1}, published_schema("layout"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_published_schemas_are_those_of_the_code(name: str) -> None:
    assert published_schema(name) == json.loads(schema_text(name))


def test_an_unknown_format_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no format 'onxn'; did you mean onnx"):
        export(made("opt"), "onxn", tmp_path / "out")


@pytest.mark.parametrize("form", [name for name in FORMATS if name != "trials"])
def test_a_taken_folder_stays_as_it_is(form: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not an empty folder; nothing was written: name another one"):
        export(made("opt"), form, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ExportError, match="is not an empty folder"):
        export(made("opt"), form, tmp_path / "mine.txt")


@pytest.mark.parametrize("form", [name for name in FORMATS if name not in ("trials", "onnx", "adapters")])
def test_others_may_read_what_is_written(form: str, tmp_path: Path) -> None:
    """The saved model and each format: no file is owner-only, whichever library wrote it."""
    before = os.umask(0o022)
    try:
        out = export(made("opt", "{}", "SPS-PPS"), form, tmp_path / "out")
        weights = shutil.copytree(made_folder("opt", "{}", "SPS-PPS"), tmp_path / "model") / "model.safetensors"
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (*out.rglob("*.*"), weights)} == {0o644}


def test_trials_are_of_a_study(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="format trials describes a study, not a model; name a study that was run"):
        export(made("opt"), "trials", tmp_path / "out")


def test_an_option_that_a_form_does_not_support_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="format torch does not support --top; remove it, or choose onnx, pt2"):
        export(made("opt"), "torch", tmp_path / "out", ExportOptions(top=3))


@pytest.mark.parametrize("problem", [RuntimeError("the exporter broke"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(problem: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(recommender: Recommender, folder: Path, options: ExportOptions) -> None:
        (folder / "half").write_text("half")
        raise problem

    monkeypatch.setitem(FORMATS, "layout", Format("breaks", breaks, ""))
    with pytest.raises(type(problem)):
        export(made("opt"), "layout", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("catalogue.jsonl", "item3", "itemX", "is not the catalogue that the model was trained on; restore it"),
        ("layout.json", "SPS-PPS", "SPS-PPP", "has the layout SPS-PPP and the weights were trained with SPS-PPS"),
    ],
)
def test_an_edited_model_folder_is_noticed(file: str, before: str, after: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made_folder("opt", "{}", "SPS-PPS"), folder)
    path = folder / file
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ModelFolderError, match=said):
        load(folder, device="cpu")


def test_another_catalogue_beside_a_written_file_is_noticed(tmp_path: Path) -> None:
    out = export(made("opt", "{}", "SPS-PPS"), "torch", tmp_path / "out")
    edited(out / "catalogue.json", users=[])
    with pytest.raises(ValueError, match=r"catalogue\.json is not that of config\.json; put back"):
        opened(out / "recommender.py").load(out)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "file"), [("torch", "recommender.py"), ("pt2", "serve.py")])
def test_written_files_answer_from_a_terminal(form: str, file: str, tmp_path: Path) -> None:
    out = export(made("opt", "{}", "SPS-PPS"), form, tmp_path / "out")
    call = [sys.executable, str(out / file)]
    said = subprocess.run([*call, "item1,item2"], capture_output=True, text=True, check=True).stdout.splitlines()
    model = made("opt", "{}", "SPS-PPS")
    best = model.recommend(["item1", "item2"])
    assert [line.split()[1] for line in said] == [one.item for one in best]
    again = subprocess.run([*call, "item1,item2", "--include-seen"], capture_output=True, text=True, check=True).stdout
    best = model.recommend(["item1", "item2"], include_seen=True)
    assert [line.split()[1] for line in again.splitlines()] == [one.item for one in best]
    refused = subprocess.run([*call, "item1,nonsense"], capture_output=True, text=True, check=False)
    assert refused.stderr.strip() == "unknown item 'nonsense'; catalogue.json lists them all"
    assert refused.returncode == 1

"""Layout files, trials, and what a trained model's folder says of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from dasearch.errors import DasearchError, ModelFolderError
from dasearch.layout import Layout
from dasearch.layout_file import LayoutFile, read_layout
from dasearch.search.prior import prior_trials
from dasearch.search_space import load_search_space
from dasearch.training.recommender import load
from tests.export.made import made_folder
from tests.fuzz.holding import TIMES, fuzz, used_or_refused
from tests.fuzz.mutations import WORDS, contents, records

LAYOUT = {
    "schema_version": "1.2", "model": "DARec", "backbone": "tiny-opt", "layers": 2, "replaced": [1, 2],
    "sites": ["causal", "context", "recommendation"], "layout": "SPS-PPS",
    "choices": [
        {"name": "serial", "letter": "S"},
        {"name": "parallel", "letter": "P", "parallel": True, "width": 4, "join": "sum", "lora": False},
    ],
    "metric": {"name": "MRR", "value": 0.2, "low": 0.1, "high": 0.3, "split": "test"},
    "study": "x", "seed": 0, "versions": {"dasearch": "0.1.0"},
}  # fmt: skip
TRIALS = {
    "schema_version": "1.3", "model": "darec", "sites": LAYOUT["sites"], "layers": 2, "replaced": [1, 2],
    "metric": "MRR", "study": "x", "dataset": "toy", "seed": 0,
    "trials": [{"layout": "SPS-PPS", "score": 0.1, "signal": 0.2}, {"layout": "SSS-PPS", "score": 0.2, "signal": 0.1}],
    "failed": [{"layout": "PPP-PPS", "reason": "it diverged"}],
}  # fmt: skip
FILES = st.sampled_from([LAYOUT, TRIALS])


def read_as_any(path: Path) -> bool:
    space = load_search_space("darec", backbone_layers=4)
    readings = (
        lambda: read_layout(path),
        lambda: LayoutFile.read(path).text(),
        lambda: prior_trials(str(path), space),
    )
    used = [used_or_refused(read) for read in readings]
    return any(used)


def test_the_files_that_are_damaged_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(LAYOUT))
    assert str(read_layout(path)) == "SPS-PPS"
    path.write_text(json.dumps(TRIALS))
    assert len(prior_trials(str(path), load_search_space("darec", backbone_layers=4))) == 2


@TIMES
def test_records_of_other_kinds(times: int, tmp_path: Path) -> None:
    path = tmp_path / "file.json"

    def check(record: Any) -> bool:
        path.write_text(json.dumps(record))
        return read_as_any(path)

    fuzz(check, 150 * times, record=FILES.flatmap(lambda one: records(lambda: one)))


@TIMES
def test_damaged_texts(times: int, tmp_path: Path) -> None:
    path = tmp_path / "file.json"

    def check(content: bytes) -> bool:
        path.write_bytes(content)
        return read_as_any(path)

    fuzz(check, 60 * times, content=FILES.map(lambda one: json.dumps(one, indent=1).encode()).flatmap(contents))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"trials":' * 50_000, '{"layout": ' + "9" * 5000 + "}", '"\\ud800"', ""]
)
def test_json_that_is_too_much(content: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    assert not read_as_any(path)


@TIMES
def test_layouts_by_their_letters(times: int) -> None:
    space = load_search_space("darec-wide", backbone_layers=4)

    def check(text: str) -> bool:
        return any([used_or_refused(lambda: Layout.parse(text)), used_or_refused(lambda: space.parse(text))])

    fuzz(check, 60 * times, text=st.text("SPNsp- ", max_size=14) | WORDS | st.text(max_size=6))


@pytest.mark.parametrize(("value", "said"), [(2, "2"), ({"study": "x" * 5000}, "{'study': '" + "x" * 29)])
def test_another_format_is_said_in_short(tmp_path: Path, value: object, said: str) -> None:
    folder = shutil.copytree(made_folder("opt", "{}", "SPS-PPS"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": value}))
    with pytest.raises(ModelFolderError, match=f"/model has format {said} and this dasearch reads 1; update dasearch$"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (
            "config.json",
            {"study": None},
            r"config\.json: the settings of a study are sections, as in search: \{budget: 30\}",
        ),
        ("config.json", {"replaced": []}, r"/model is incomplete or damaged \(.*\); train or copy it again"),
        ("config.json", {"replaced": [0]}, "replace_every is 0 and the backbone has 2 layers"),
        ("config.json", {"dataset": None}, r"/model is incomplete or damaged \(.*\); train or copy it again"),
        ("users.json", None, r"/model is incomplete or damaged \(.*\); train or copy it again"),
    ],
)
def test_records_of_a_model_with_something_else(tmp_path: Path, file: str, change: Any, said: str) -> None:
    folder = shutil.copytree(made_folder("opt", "{}", "SPS-PPS"), tmp_path / "model")
    whole = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**whole, **change} if change else None))
    with pytest.raises(DasearchError, match=said):
        load(folder, device="cpu")


@TIMES
def test_model_folders(times: int, tmp_path: Path) -> None:
    """What says what a folder holds; weights and tokenizers are other libraries'."""
    folder = shutil.copytree(made_folder("opt", "{}", "SPS-PPS"), tmp_path / "model")
    names = ("config.json", "users.json", "catalogue.jsonl", "layout.json")
    whole = {name: (folder / name).read_bytes() for name in names}
    config = json.loads(whole["config.json"])

    def check(drawn: tuple[str, bytes]) -> bool:
        name, content = drawn
        (folder / name).write_bytes(content)
        used = used_or_refused(lambda: load(folder, device="cpu"))
        (folder / name).write_bytes(whole[name])
        return used

    damaged = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), contents(whole[name])))
    other = records(lambda: config).map(lambda record: ("config.json", json.dumps(record).encode()))
    fuzz(check, 40 * times, drawn=damaged | other)

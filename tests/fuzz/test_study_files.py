"""Study files, overrides and search space files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from dasearch.config import flattened, load_study, parse_study
from dasearch.search.ablation import load_variants
from dasearch.search.study import Study
from dasearch.search_space import load_search_space
from dasearch.shipped import shipped
from tests.fuzz.holding import TIMES, fuzz, used_or_refused
from tests.fuzz.mutations import JUNK, KEYS, WORDS, contents, records

SHIPPED = sorted(shipped("studies").glob("*.yaml"))
SPACES = sorted(shipped("search_spaces").glob("*.yaml"))
ABLATIONS = sorted((shipped("studies") / "ablations").glob("*.yaml"))
WHOLE = [load_study(name).model_dump(mode="json") for name in ("quickstart", "idle", "ra-rec", "e4s-rec")]
OPTIONS = sorted({key for record in WHOLE for key in flattened(record)})


def opened(files: list[Path]) -> list[Any]:
    return [yaml.safe_load(one.read_text(encoding="utf-8")) for one in files]


def checked(name: str, overrides: tuple[str, ...] = ()) -> None:
    """Read as every command does; what is accepted is the same when it is written and read again."""
    study = Study.load(name, overrides)
    again = parse_study(yaml.safe_load(study.settings.yaml()))
    assert again.model_dump_json() == study.settings.model_dump_json()
    if study.settings.backbone.name == "tiny-opt":
        study.searched_space()


def written(path: Path, record: Any) -> str:
    """YAML as people write it; what it cannot express is left as text."""
    path.write_bytes(yaml.dump(record, allow_unicode=True).encode("utf-8", "surrogatepass"))
    return str(path)


@TIMES
def test_settings_of_other_kinds(times: int, tmp_path: Path) -> None:
    valid = st.sampled_from([*opened(SHIPPED), *WHOLE])

    def check(record: Any) -> bool:
        return used_or_refused(lambda: checked(written(tmp_path / "study.yaml", record)))

    fuzz(check, 250 * times, record=valid.flatmap(lambda one: records(lambda: one)))


@TIMES
def test_damaged_texts_of_studies(times: int, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"

    def check(content: bytes) -> bool:
        path.write_bytes(content)
        return used_or_refused(lambda: checked(str(path)))

    whole = st.sampled_from([one.read_bytes() for one in SHIPPED])
    fuzz(check, 120 * times, content=whole.flatmap(contents))


@TIMES
def test_overrides(times: int) -> None:
    keys = st.one_of(st.sampled_from(OPTIONS), KEYS, st.tuples(st.sampled_from(OPTIONS), KEYS).map(".".join))
    values = st.one_of(WORDS, JUNK.map(lambda one: yaml.dump(one, default_flow_style=True)), st.text(max_size=10))
    override = st.one_of(st.tuples(keys, values).map("=".join), KEYS)

    def check(name: str, overrides: list[str]) -> bool:
        return used_or_refused(lambda: checked(name, tuple(overrides)))

    names = st.one_of(st.sampled_from(["quickstart", "idle", "e4s-rec", "ra-rec"]), WORDS)
    fuzz(check, 200 * times, name=names, overrides=st.lists(override, min_size=1, max_size=3))


def fuzz_files(read: Callable[[str], object], valid: list[Path], *, at: Path, times: int) -> None:
    """Read these files with values of other kinds, and with damaged bytes."""

    def check(record: Any, content: bytes, whole: bool) -> bool:
        written(at, record) if whole else at.write_bytes(content)
        return used_or_refused(lambda: read(str(at)))

    fuzz(
        check, times, whole=st.booleans(),
        record=st.sampled_from(opened(valid)).flatmap(lambda one: records(lambda: one)),
        content=st.sampled_from([one.read_bytes() for one in valid]).flatmap(contents),
    )  # fmt: skip


@TIMES
def test_search_spaces(times: int, tmp_path: Path) -> None:
    def read(name: str) -> object:
        return load_search_space(name, backbone_layers=4).record()

    fuzz_files(read, SPACES, at=tmp_path / "space.yaml", times=120 * times)


@TIMES
def test_ablation_files(times: int, tmp_path: Path) -> None:
    study = Study(load_study("quickstart"))
    fuzz_files(lambda name: load_variants(study, name), ABLATIONS, at=tmp_path / "ablation.yaml", times=60 * times)


@pytest.mark.parametrize(
    "content", ["[" * 5000, "a: " * 5000, "&a [*a]", "name: &a {x: *a}", 'name: "\\ud800"', "seed: " + "9" * 5000]
)
def test_yaml_that_is_too_much(content: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(content)
    assert not used_or_refused(lambda: checked(str(tmp_path / "study.yaml")))
    assert not used_or_refused(lambda: load_search_space(str(tmp_path / "study.yaml"), backbone_layers=4))
    assert not used_or_refused(lambda: load_variants(Study(load_study("quickstart")), str(tmp_path / "study.yaml")))
    assert not used_or_refused(lambda: load_study("quickstart", [content.replace(": ", "=")]))

"""The study file: every key known, described, and overridable."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from pydantic import BaseModel

from dasearch.config import STUDIES, Override, load_study, parse_study
from dasearch.errors import StudyError
from dasearch.layout import ModelKind
from dasearch.models.tiny_opt import TinyOPTSettings
from dasearch.shipped import shipped
from dasearch.yaml_files import parse_yaml

SHIPPED = sorted(path.stem for path in shipped("studies").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_studies_load_and_come_back(name: str) -> None:
    settings = load_study(name)
    assert settings.name == name
    assert parse_study(yaml.safe_load(settings.yaml())) == settings


def test_quickstart_and_amazon_are_shipped() -> None:
    assert {"quickstart", "amazon-scientific"} <= set(SHIPPED)


def test_overrides() -> None:
    settings = load_study(
        "quickstart", ["trial.epochs=2", "losses.align=1e-3", "backbone.tiny.width=32", "data.ties=one"]
    )
    assert settings.trial.epochs == 2
    assert settings.losses.align == 1e-3
    assert settings.backbone.tiny.width == 32
    assert settings.data.ties == "one"
    assert settings.trial.lr == load_study("quickstart").trial.lr


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "1.e-3", ".1e-2", "0.1e-2", "1.0e-3", "10e-4"])
def test_numbers_with_an_exponent_are_numbers_everywhere(text: str, tmp_path: Path) -> None:
    """YAML 1.1 wants a point and a sign; people write what Python, JSON and YAML 1.2 read."""
    assert parse_yaml(f"{{a: [{text}]}}") == {"a": [float(text)]}
    path = tmp_path / "study.yaml"
    path.write_text(f"name: x\nsearch: {{also: {{trial.lr: {{log: [{text}, 1e-2]}}, losses.align: [{text}, 1e0]}}}}\n")
    also = f"search.also={{trial.lr: {{log: [{text}, 1e-2]}}, losses.align: [{text}, 1e0]}}"
    for study in (load_study(str(path)), load_study("quickstart", [also])):
        assert study.searched == {
            "trial.lr": FloatDistribution(0.001, 0.01, log=True),
            "losses.align": CategoricalDistribution((0.001, 1.0)),
        }


@pytest.mark.parametrize("text", ["1e", "e3", "1e3x", "1e3e3", "0x1e-3", "--1e3", "1_0e3", "1e3.5"])
def test_what_looks_like_a_number_with_an_exponent_is_text(text: str) -> None:
    assert parse_yaml(text) == text


@pytest.mark.parametrize("name", ["1e3", "1e-3", "5E1", "12e4567"])
def test_texts_that_look_like_numbers_come_back(name: str) -> None:
    settings = load_study("quickstart", [f"name='{name}'"])
    assert settings.name == name
    assert parse_study(parse_yaml(settings.yaml())) == settings


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trial.epochs=x"], r"^--set trial\.epochs=x: trial\.epochs: input should be a valid integer"),
        (["seed=1", "trial.epoch=2", "trial.lr=1"], r"^--set trial\.epoch=2: unknown key trial\.epoch; did you mean"),
        (["trial.epochs=2", "trial.epochs=x", "trial.lr=y"], r"^--set trial\.epochs=x: trial\.epochs: "),
        (["model.kind=darek"], r"^--set model\.kind=darek: model\.kind is 'darek'; did you mean darec\?"),
        (
            ["trial.rates={encoder: 2}"],
            r"^--set trial\.rates=\{encoder: 2\}: trial\.rates: there is no group 'encoder'",
        ),
        (
            ["model.bottleneck=3", "search.pick=knee"],
            r"^--set search\.pick=knee: search: pick=knee chooses from a front",
        ),
        ([Override.option("--budget", "search.budget", 0)], r"^--budget 0: search\.budget: input should be greater"),
        ([Override.option("--output", "output", "a: b"), "seed=-1"], r"^--set seed=-1: seed: input should be greater"),
    ],
)
def test_an_error_names_the_override_that_brought_it(
    tmp_path: Path, overrides: list[str | Override], said: str
) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(StudyError, match=said):
        load_study(str(tmp_path / "mine.yaml"), overrides)


def test_an_error_of_the_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\ntrial: {epochs: x}\n")
    with pytest.raises(StudyError, match=r"mine\.yaml: trial\.epochs: input should be a valid integer"):
        load_study(str(tmp_path / "mine.yaml"), ["seed=1"])
    assert load_study(str(tmp_path / "mine.yaml"), ["trial.epochs=2"]).trial.epochs == 2


def chosen(section: type[BaseModel], *path: str) -> Iterator[tuple[str, str]]:
    """Every setting of a section that has a few names as values, and each of them."""
    for name, field in section.model_fields.items():
        for one in (field.annotation, *get_args(field.annotation)):
            if isinstance(one, type) and issubclass(one, StrEnum):
                yield from ((".".join((*path, name)), value.value) for value in one)
            elif isinstance(one, type) and issubclass(one, BaseModel):
                yield from chosen(one, *path, name)


@pytest.mark.parametrize("kind", STUDIES)
def test_names_are_known_in_any_capitals(kind: ModelKind, tmp_path: Path) -> None:
    """Each alone; values that do not fit the rest of the study are rejected too, by name."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nmodel: {{kind: {kind}}}\ntrial: {{batch_size: 16}}\nfinal: {{batch_size: 16}}\n")
    every = dict.fromkeys(chosen(STUDIES[kind]))
    assert len(every) > 15
    same = 0
    for key, value in every:
        try:
            expected = load_study(str(path), [f"{key}={value}"])
        except StudyError:
            continue
        assert load_study(str(path), [f"{key}={value.title()}"]) == expected
        assert load_study(str(path), [f"{key}={value.upper()}"]) == expected
        same += 1
    assert same > 10


@pytest.mark.parametrize(
    ("key", "given", "known"),
    [
        ("model.kind", "Ra-Rec", "ra-rec"),
        ("data.source", "Complete-Journey", "complete-journey"),
        ("data.format", "RecBole", "recbole"),
        ("backbone.name", "Tiny-OPT", "tiny-opt"),
        ("encoder.name", "SASRec", "sasrec"),
        ("search.objective", "NDCG@10", "ndcg@10"),
        ("comparison.encoders", "[GRU4Rec, BERT4Rec]", "[gru4rec, bert4rec]"),
        ("comparison.variations", "[LLMRec]", "[llmrec]"),
        ("device", "CPU", "cpu"),
    ],
)
def test_names_of_what_dasearch_has_are_known_in_any_capitals(
    key: str, given: str, known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\n")
    model = ["model.kind=ra-rec"] if key == "model.kind" else []
    assert load_study("mine.yaml", [f"{key}={given}"]) == load_study("mine.yaml", [f"{key}={known}", *model])


def test_a_folder_keeps_its_capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Complete-Journey").mkdir()
    assert load_study("QuickStart", ["data.source=Complete-Journey"]).data.source == "Complete-Journey"
    assert load_study("quickstart", ["backbone.name=Nobody/Thing"]).backbone.name == "Nobody/Thing"


def test_an_options_value_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    for folder in ("a: b", "7", "Ä [x]", '"quoted"', "\U0001f600"):
        assert load_study(str(tmp_path / "mine.yaml"), [Override.option("--output", "output", folder)]).output == folder


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trial.epoch=2", r"unknown key trial\.epoch; did you mean epochs\?"),
        ("los.align=1", r"unknown key los; did you mean losses\?"),
        ("zzz=1", "unknown key zzz; known here: name, seed"),
        ("model.botleneck=3", r"unknown key model\.botleneck; did you mean bottleneck\?"),
        ("backbone.tiny.widht=3", r"unknown key backbone\.tiny\.widht; did you mean width\?"),
        ("search.budget=0", r"search\.budget: input should be greater than or equal to 1 \(got 0\)"),
        ("data.bo_fraction=1.5", r"data\.bo_fraction: input should be less than or equal to 1"),
        ("model.variation=darek", r"model\.variation: input should be 'darec'"),
        ("trial.epochs=two", r"trial\.epochs: input should be a valid integer"),
        ("name=a/b", "name: string should match pattern"),
        ("trial", r"--set takes key=value, as in --set trial\.epochs=2; got 'trial'"),
        ("seed.x=1", "seed is a value and not a section"),
        ("trial.lr=[", "is not a YAML value"),
    ],
)
def test_what_an_override_cannot_be(override: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load_study("quickstart", [override])


def test_files_that_are_no_studies(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no study file 'quickstrat'; did you mean quickstart"):
        load_study("quickstrat")
    file = tmp_path / "s.yaml"
    for text, message in (
        ("a: [", "is not YAML"),
        ("", "has no settings"),
        ("- a", "has no settings"),
        ("seed: 1", "name is missing"),
    ):
        file.write_text(text)
        with pytest.raises(StudyError, match=message):
            load_study(str(file))
    file.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(StudyError, match="is not YAML"):
        load_study(str(file))


def fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += fields(inner, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", field))
    return found


@pytest.mark.parametrize(("study", "kind"), [("quickstart", "darec"), ("idle", "idle"), ("ra-rec", "ra-rec")])
def test_the_dry_run_shows_every_key(study: str, kind: str) -> None:
    shown = yaml.safe_load(load_study(study).yaml())
    for key, _ in fields(STUDIES[ModelKind(kind)]):
        value = shown
        for part in key.split("."):
            assert part in value, key
            value = value[part]


@pytest.mark.parametrize("kind", list(STUDIES))
def test_keys_are_described(kind: ModelKind) -> None:
    plain = {"seed", "epochs", "batch_size", "lr", "weight_decay", "layers", "width", "heads", "ffn", "kind"}
    bare = [key for key, field in fields(STUDIES[kind]) if not field.description and key.split(".")[-1] not in plain]
    assert not bare


def test_tiny_settings_are_the_models_own() -> None:
    assert load_study("quickstart", ["backbone.tiny={}"]).backbone.tiny.settings() == TinyOPTSettings()


@pytest.mark.parametrize(
    ("study", "changes", "sentence"),
    [
        ("idle", ["model.prefix=0"], r"model.prefix: a prefix has at least 1 token, got 0; .* see refine=none$"),
        ("ra-rec", ["model.prefix=0"], r"model.prefix: a prefix has at least 1 token, got 0"),
        (
            "idle",
            ["trial.batch_size=8"],
            r"trial.batch_size is 8 and MMD compares samples of at least 16 rows; raise it",
        ),
        ("idle", ["final.batch_size=15"], r"final.batch_size is 15 and MMD .* or set losses.mmd=0$"),
        ("idle", ["encoder.pool=as_tokens"], r"gives several ID vectors; set model.refine=concat or none"),
        ("idle", ["losses.align=1"], r"unknown key losses.align; known here: mmd"),
        ("idle", ["model.bottleneck=4"], r"unknown key model.bottleneck"),
        ("idle", ["model.kind=idel"], r"model.kind is 'idel'; did you mean idle\?; choose darec, idle, ra-rec"),
        ("ra-rec", ["cf.epochs=3"], r"unknown key cf"),
    ],
)
def test_wrong_settings_of_the_other_models(study: str, changes: list[str], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence) as error:
        load_study(study, changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("study", "change", "sentence"),
    [
        ("quickstart", "trial.rates.adapter=4", r"trial.rates: there is no group 'adapter'; did you mean adapters\?;"),
        ("quickstart", "trial.rates.head=0", r"trial.rates.head: input should be greater than 0 \(got 0\)$"),
        (
            "quickstart",
            "final.rates.ids=4",
            r"final.rates: darec as set here trains no ids; remove final.rates.ids or use",
        ),
        ("ra-rec", "final.rates.cf=4", r"ra-rec as set here trains no cf; .* or use one of adapters$"),
        ("quickstart", "trial.average=1", r"trial.average: input should be less than 1 \(got 1\)$"),
    ],
)
def test_wrong_recipes(study: str, change: str, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence) as error:
        load_study(study, [change])
    assert "\n" not in str(error.value)


def test_what_recipes_had_not_always_is_recorded_where_it_is_set() -> None:
    study = load_study("quickstart", ["trial.average=0.9", "final.rates.head=2"])
    added = {"dropout", "average", "rates"}
    assert added & set(study.trial.record()) == {"average"}
    assert added & set(study.final.record()) == {"rates"}
    assert not added & set(load_study("quickstart").final.record())


def test_small_batches_without_mmd() -> None:
    assert load_study("idle", ["trial.batch_size=8", "losses.mmd=0"]).trial.batch_size == 8


def test_each_model_has_its_own_space() -> None:
    assert [load_study(name).space_name for name in ("quickstart", "idle", "ra-rec")] == ["darec", "idle", "ra-rec"]
    assert load_study("idle", ["space.name=idle-strict"]).space_name == "idle-strict"

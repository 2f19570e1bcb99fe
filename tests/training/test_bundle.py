"""Bundles: opened in another process with identical results, and without anything of the test split."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dasearch.config import Precision, StudySettings
from dasearch.data import Dataset, Item, LeaveOneOut
from dasearch.errors import BundleError
from dasearch.models import pretrained
from dasearch.training.bundle import MATERIALS, load_bundle, save_bundle
from dasearch.training.checkpoints import load_tensors
from dasearch.training.loop import train
from dasearch.training.materials import StudyContext, text_vectors
from dasearch.training.preparation import prepare_study
from tests.conftest import seeded, tiny_model, toy_dataset, word_tokenizer
from tests.training import from_bundle
from tests.training.studies import ENCODER, materials, small_settings

KINDS = ("darec", "idle", "ra-rec", "e4s-rec")
VARIED: list[dict[str, Any]] = [
    *({"model": {"kind": kind}} for kind in KINDS),
    {"model": {"item_ids": "encoder", "head_states": "whitened"}, "encoder": ENCODER, "examples": {"per_user": 1}},
    {"losses": {"contrastive": 0.0}, "cf": {"epochs": 0}},
    {"model": {"kind": "idle", "encoder_scores": 0.5}, "encoder": {"name": "fdsa"}},
    {"model": {"kind": "ra-rec"}, "losses": {"align": 0.0}, "encoder": {"name": "mf", "epochs": 1}},
    {"model": {"kind": "e4s-rec"}, "encoder": {"name": "comirec-dr", "epochs": 0}, "examples": {"per_user": 2}},
]


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, str]]:
    """By kind: a model trained from the materials in memory, one from the bundle in another process, the bundle's name."""
    folder = tmp_path_factory.mktemp("worked")
    jobs, found = [], {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASEARCH_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        for kind in KINDS:
            settings = small_settings(model={"kind": kind})
            own = from_bundle.prepared(settings)
            name = save_bundle(own, folder / kind)
            found[kind] = (folder / f"{kind}-memory", folder / f"{kind}-bundle", name)
            from_bundle.write_trained(found[kind][0], settings, own)
            record = settings.model_dump(mode="json")
            jobs.append(
                {"settings": record, "folder": str(folder / kind), "bundle": name, "trained": str(found[kind][1])}
            )
        (folder / "jobs.json").write_text(json.dumps(jobs))
        worker = [sys.executable, "-m", from_bundle.__name__, str(folder / "jobs.json")]
        subprocess.run(worker, check=True, cwd=Path(__file__).parents[2], capture_output=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_in_another_process_is_the_same_to_the_last_bit(
    kind: str, worked: dict[str, tuple[Path, Path, str]]
) -> None:
    memory, bundle, _ = worked[kind]
    (tensors, record), (others, told) = load_tensors(memory), load_tensors(bundle)
    assert record["epochs"] == told["epochs"]
    assert set(tensors) == set(others)
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_depends_on_neither_folder_nor_process(kind: str, worked: dict[str, tuple[Path, Path, str]]) -> None:
    _, bundle, name = worked[kind]
    _, told = load_tensors(bundle)
    assert (told["again"], told["prepared_here"]) == (name, name)


@pytest.mark.parametrize("changes", VARIED, ids=json.dumps)
def test_round_trip(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = small_settings(**changes)
    own = materials(settings)
    name = save_bundle(own, tmp_path)
    loaded = load_bundle(tmp_path, name, settings)
    assert save_bundle(loaded, tmp_path / "again") == name
    for field in dataclasses.fields(own.method):
        assert (getattr(own.method, field.name) is None) == (getattr(loaded.method, field.name) is None), field.name
    tensors, others = own.method.tensors(), loaded.method.tensors()
    assert set(tensors) == set(others)
    assert all(torch.equal(tensor, others[part]) for part, tensor in tensors.items())
    assert loaded.catalogue.items == own.catalogue.items
    assert loaded.catalogue.items_hash == own.catalogue.items_hash
    assert (
        loaded.catalogue.tokenizer("w3 w25 brand")["input_ids"] == own.catalogue.tokenizer("w3 w25 brand")["input_ids"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_variations_equal_those_of_the_original(kind: str, tmp_path: Path) -> None:
    """Other users, a variation of the model and another precision."""
    settings = small_settings(model={"kind": kind})
    varied = settings.model_copy(update={"model": settings.model.model_copy(update={"bottleneck": 2, "prefix": 2})})
    own = materials(settings)
    loaded = load_bundle(tmp_path, save_bundle(own, tmp_path), settings)
    sample = own.development.sample_users(0.7, seeded(3))
    ends = []
    for ready in (own, loaded):
        trained = train(varied, ready.on(sample).under(varied), from_bundle.layout_of(settings), settings.trial)
        assert len(trained.progress.epochs) == settings.trial.epochs
        ends.append(trained.model.own_tensors())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    rounded = [text_vectors(m.computing_in(Precision.BFLOAT16).catalogue, m.device) for m in (own, loaded)]
    assert torch.equal(*rounded)
    assert not torch.equal(rounded[0], own.text_vectors)


def with_marked_tests(shift: int) -> Dataset:
    """`toy_dataset` with a further last purchase of each user, of one of 60 items that nobody else buys."""
    plain = toy_dataset(60, 40)
    marked = tuple(Item(f"marked{k}", {"title": f"w{3 + k % 40}"}) for k in range(60))
    last = 40 + (np.arange(60) + shift) % 60
    return Dataset(
        plain.name,
        plain.users,
        plain.items + marked,
        tuple(np.append(sequence, item) for sequence, item in zip(plain.sequences, last, strict=True)),
        tuple(np.append(stamps, 99) for stamps in plain.timestamps),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_test_split_is_in_a_bundle(kind: str, tmp_path: Path) -> None:
    settings = small_settings(model={"kind": kind})
    dataset = with_marked_tests(0)
    development = LeaveOneOut(dataset).development
    name = save_bundle(prepare_study(settings, dataset, development), tmp_path)
    tensors, record = load_tensors(tmp_path / name / MATERIALS)

    owners, items = tensors["purchases"] // 100, tensors["purchases"] % 100
    train = torch.split(tensors["development/train"], tensors["development/lengths"].tolist())
    places = dict(zip(development.users.tolist(), development.train, strict=True))
    for user, sequence in enumerate(dataset.sequences):
        stored = torch.cat([train[user], tensors["development/valid"][user, None]]).tolist()
        assert stored == sequence[:-1].tolist()
        assert sequence[-1] not in stored
        assert set(items[owners == user].tolist()) == set(places[user].tolist())
    assert not tensors["item_counts"][40:].any()

    of_users = {"train", "lengths", "users", "valid"}
    assert {key.split("/")[1] for key in tensors if key.startswith("development/")} == of_users
    one_a_user = {key for key, tensor in tensors.items() if 60 in tensor.shape}
    known = {"development/users", "development/lengths", "development/valid", "method/cf/users.weight"}
    assert {key for key in one_a_user if not key.startswith("encoder/")} <= known
    assert set(record) == {
        *("format", "prepared", "dataset", "row_format", "item_prompt", "n_users", "n_items", "backbone")
    }
    assert "u17" not in "".join(p.read_text() for p in (tmp_path / name).rglob("*.json*"))


@pytest.mark.parametrize("kind", KINDS)
def test_other_test_items_make_the_same_bundle(kind: str, tmp_path: Path) -> None:
    settings = small_settings(model={"kind": kind})
    names = set()
    for shift in (0, 1, 31):
        dataset = with_marked_tests(shift)
        names.add(save_bundle(prepare_study(settings, dataset, LeaveOneOut(dataset).development), tmp_path))
    assert len(names) == 1


def test_another_training_item_makes_another_bundle(tmp_path: Path) -> None:
    settings, dataset = small_settings(), toy_dataset(60, 40)
    changed = (np.append(dataset.sequences[0][0] - 1, dataset.sequences[0][1:]) % 40, *dataset.sequences[1:])
    other = dataclasses.replace(dataset, sequences=changed)
    found = prepare_study(settings, other, LeaveOneOut(other).development)
    assert save_bundle(found, tmp_path) != save_bundle(materials(settings), tmp_path)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, str, StudySettings]:
    settings = small_settings()
    return tmp_path, save_bundle(materials(settings), tmp_path), settings


def test_only_safetensors_and_json(stored: tuple[Path, str, StudySettings]) -> None:
    folder, name, _ = stored
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".safetensors", ".json", ".jsonl"}
    assert [path.name for path in folder.iterdir()] == [name]


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_of_any_file_is_rejected(stored: tuple[Path, str, StudySettings]) -> None:
    folder, name, settings = stored
    files = [path for path in (folder / name).rglob("*") if path.is_file()]
    assert len(files) == 6
    for path in files:
        for place in (0, path.stat().st_size // 2, -1):
            flipped(path, place)
            with pytest.raises(BundleError, match=f"{name} is damaged; delete it and start the study again"):
                load_bundle(folder, name, settings)
            flipped(path, place)
    assert isinstance(load_bundle(folder, name, settings), StudyContext)


def test_a_missing_file_and_a_missing_bundle_are_rejected(stored: tuple[Path, str, StudySettings]) -> None:
    folder, name, settings = stored
    (folder / name / "catalogue.jsonl").unlink()
    with pytest.raises(BundleError, match="is damaged"):
        load_bundle(folder, name, settings)
    shutil.rmtree(folder / name)
    with pytest.raises(BundleError, match=f"there is no bundle {name} in .*; start the study again"):
        load_bundle(folder, name, settings)


def test_an_existing_bundle_is_only_rewritten_if_damaged(stored: tuple[Path, str, StudySettings]) -> None:
    folder, name, settings = stored
    place = folder / name / MATERIALS
    before = place.stat()
    assert save_bundle(materials(settings), folder) == name
    assert (place.stat().st_ino, place.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    flipped(place, -1)
    assert save_bundle(materials(settings), folder) == name
    assert isinstance(load_bundle(folder, name, settings), StudyContext)


def test_an_interruption_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dasearch.training.bundle.write_items", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_bundle(materials(small_settings()), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 3}, "was prepared with seed 0 and the study has 3"),
        ({"data": {"item_tokens": 3}}, "was prepared with data.item_tokens 4 and the study has 3"),
        ({"model": {"kind": "idle"}}, "was prepared with .* and the study has"),
        ({"backbone": {"name": "minilm-l6"}}, "was prepared with backbone.name tiny-opt and the study has minilm-l6"),
    ],
)
def test_a_bundle_of_another_study_is_rejected(
    changes: dict[str, Any], said: str, stored: tuple[Path, str, StudySettings]
) -> None:
    folder, name, _ = stored
    with pytest.raises(BundleError, match=said):
        load_bundle(folder, name, small_settings(**changes))


def test_paths_of_this_machine_are_not_part_of_it(stored: tuple[Path, str, StudySettings]) -> None:
    folder, name, settings = stored
    elsewhere = small_settings(data={"source": "/another/place"}, output="/another/output", trial={"epochs": 1})
    assert isinstance(load_bundle(folder, name, elsewhere), StudyContext)
    moved = materials(settings).under(elsewhere)
    assert save_bundle(moved, folder) == name


def test_row_lengths_are_those_of_the_driver(tmp_path: Path) -> None:
    """For studies prepared on a GPU and trained elsewhere."""
    settings = small_settings()
    own = materials(settings)
    wide = dataclasses.replace(own.catalogue, row_format=dataclasses.replace(own.catalogue.row_format, multiple=16))
    loaded = load_bundle(tmp_path, save_bundle(dataclasses.replace(own, catalogue=wide), tmp_path), settings)
    assert loaded.catalogue.row_format == wide.row_format
    width, narrow = (c.item_rows.select(torch.tensor([0])).tokens.shape[1] for c in (loaded.catalogue, own.catalogue))
    assert narrow < width == 31  # with one key more a multiple of 16


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A tiny Llama's folder, and a name that leads there as that of a package's model does."""
    folder = tmp_path / "package"
    tiny_model("llama").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    locate = pretrained.locate
    monkeypatch.setattr(pretrained, "locate", lambda name: str(folder) if name == "a-name" else locate(name))
    return folder, "a-name"


def test_a_named_backbone_is_loaded_by_its_name(named: tuple[Path, str], tmp_path: Path) -> None:
    folder, name = named
    settings = small_settings(backbone={"name": name})
    own = materials(settings)
    bundle = save_bundle(own, tmp_path)
    assert not (tmp_path / bundle / "backbone").exists()
    assert torch.equal(text_vectors(load_bundle(tmp_path, bundle, settings).catalogue, own.device), own.text_vectors)

    model = tiny_model("llama")
    model.norm.weight.data[0] += 1e-6
    model.save_pretrained(folder)
    with pytest.raises(BundleError, match="a-name has other weights here than where the study was prepared"):
        load_bundle(tmp_path, bundle, settings)


def test_a_folder_of_this_machine_is_stored(named: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = named
    settings = small_settings(backbone={"name": str(folder)})
    own = materials(settings)
    bundle = save_bundle(own, tmp_path)
    shutil.rmtree(folder)
    loaded = load_bundle(tmp_path, bundle, settings)
    assert torch.equal(text_vectors(loaded.catalogue, own.device), own.text_vectors)
    assert str(folder) not in "".join(path.read_text() for path in (tmp_path / bundle).rglob("*.json*"))

"""Conversion of any format to the plain one: the same data set, the same bytes, written atomically."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasearch.data import Rules, Ties, convert, load_dataset
from dasearch.errors import DataError
from tests.conftest import toy_dataset, write_folder
from tests.data.forms import FORMS, LOG, TITLES, Log

BEFORE = {**TITLES, "i3": ""}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_reads_as_its_source(tmp_path: Path, form: str) -> None:
    log: Log = [*LOG, ("bob", "i3", 10), ("ann", "i2", 10), ("ann", "i2", 10)]
    source = FORMS[form].write(tmp_path / "source", log, BEFORE)
    written = convert(source, Rules(), out=tmp_path / "deep" / "out")
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["interactions.tsv.gz", "items.jsonl.gz"]
    assert written.interactions == len(log) - (form == "unisrec")  # which has no user with a single item
    for ties in Ties:
        rules = Rules(ties=ties, seed=3, require_title=False)
        first, second = load_dataset(source, rules), load_dataset(tmp_path / "deep" / "out", rules)
        assert first.fingerprint == second.fingerprint
        assert [t.tolist() for t in first.timestamps] == [t.tolist() for t in second.timestamps]


def test_ratings_are_written(tmp_path: Path) -> None:
    source = FORMS["2023-reviews"].write(tmp_path / "source")
    review = '{"user_id": "ann", "parent_asin": "i1", "timestamp": 99, "rating": %s}'
    for rating in ("1.5", "null"):
        FORMS["2023-reviews"].add(source, "Arts.jsonl", review % rating)
    convert(source, Rules(), out=tmp_path / "out")
    for minimum, expected in ((None, 6), (1, 5), (2, 4)):
        found = load_dataset(tmp_path / "out", min_rating=minimum)
        assert len(found.sequences[found.users.index("ann")]) == expected
        assert found.fingerprint == load_dataset(source, min_rating=minimum).fingerprint


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    source = FORMS["recbole"].write(tmp_path / "source")
    for name in ("a", "b"):
        convert(source, Rules(), out=tmp_path / name)
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", toy_dataset())
    for out in (source, source / "items.jsonl"):
        with pytest.raises(DataError, match=rf"{out} exists and is not an empty folder; nothing was written"):
            convert(source, Rules(), out=out)
    assert names(source) == ["interactions.tsv", "items.jsonl"]
    (tmp_path / "empty").mkdir()
    convert(source, Rules(), out=tmp_path / "empty")
    assert load_dataset(tmp_path / "empty").fingerprint == toy_dataset().fingerprint


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FORMS["ml-1m"].write(tmp_path / "source")
    (tmp_path / "here").mkdir()
    out = tmp_path / "here" / "out"

    def fails(*_: object) -> None:
        assert names(out.parent) == [next(path.name for path in out.parent.iterdir())] != ["out"]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dasearch.data.conversion._write_items", fails)
    with pytest.raises(DataError, match=r"out cannot be written \(No space left on device\); choose another place"):
        convert(source, Rules(), out=out)
    assert names(out.parent) == []
    FORMS["ml-1m"].add(source, "ratings.dat", "ann::i1")
    with pytest.raises(DataError, match=r"ratings\.dat, line 12"):
        convert(source, Rules(), out=out)
    assert names(out.parent) == []


def test_identifiers_that_the_plain_form_cannot_hold(tmp_path: Path) -> None:
    source = FORMS["2018-core"].write(tmp_path / "source")
    review = '{"reviewerID": "a\\tb", "asin": "i1", "unixReviewTime": 3}'
    FORMS["2018-core"].add(source, "Arts_5.json", review)
    with pytest.raises(DataError, match=r"user 'a\\tb' holds a tab or line break"):
        convert(source, Rules(), out=tmp_path / "out")
    assert names(tmp_path) == ["source"]

"""The contract of readers: the same log in any format gives the same sequences and titles; errors name file and line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasearch.data import READERS, Dataset, Ties, load_dataset, read_source
from dasearch.data.readers import format_of
from dasearch.data.rules import Rules
from dasearch.errors import DataError
from tests.data.forms import FORMS, LOG, SEQUENCES, TITLES, Form, Log, histories

WITHOUT_TIMES = ("recformer", "unisrec")  # their order is all there is
WITHOUT_CATALOGUE = ("table",)  # items stand in the interactions


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


def sequences(found: Dataset) -> dict[str, list[str]]:
    return {
        user: [found.items[item].identifier for item in sequence.tolist()]
        for user, sequence in zip(found.users, found.sequences, strict=True)
    }


def titles(found: Dataset) -> dict[str, str]:
    return {item.identifier: item.attributes["title"] for item in found.items}


def test_every_reader_is_under_contract() -> None:
    assert {form.name for form in FORMS.values()} == READERS.keys()


@pytest.mark.parametrize("zipped", [False, True])
def test_the_same_log_in_any_form(tmp_path: Path, form: Form, zipped: bool) -> None:
    found = load_dataset(form.write(tmp_path / "data", zipped=zipped), ties=Ties.KEEP)
    assert sequences(found) == SEQUENCES
    known = {item: title for item, title in TITLES.items() if item != "i5" or form.name not in WITHOUT_CATALOGUE}
    assert titles(found) == known


def test_a_form_may_be_named_and_is_found_without(tmp_path: Path, form: Form) -> None:
    source = form.write(tmp_path / "data")
    assert format_of(source, Rules()) == form.name
    named, found = load_dataset(source, format=form.name), load_dataset(source)
    assert named.fingerprint == found.fingerprint


logs = st.lists(
    st.tuples(st.sampled_from(["a", "ß", "c d"]), st.sampled_from(sorted(TITLES)), st.integers(0, 5)),
    min_size=3,
    max_size=30,
).filter(lambda log: any(len(history) > 2 for history in histories(log).values()))


@settings(max_examples=15, deadline=None)
@given(log=logs)
@pytest.mark.parametrize("name", FORMS)
def test_any_log_against_a_slow_reading(name: str, log: Log) -> None:
    """Equal timestamps and repeated items among them: kept in file order, nothing dropped."""
    expected = {user: history for user, history in histories(log).items() if len(history) > 2}
    with tempfile.TemporaryDirectory() as folder:
        assert sequences(load_dataset(FORMS[name].write(Path(folder)), ties=Ties.KEEP)) == SEQUENCES
        source = FORMS[name].write(Path(folder), log)
        assert sequences(load_dataset(source, ties=Ties.KEEP)) == expected


def test_missing_titles(tmp_path: Path, form: Form) -> None:
    source = form.write(tmp_path / "data", titles={**TITLES, "i3": ""})
    found = load_dataset(source, ties=Ties.KEEP)
    assert "i3" not in titles(found)
    assert sequences(found) == {"ann": ["i2", "i4", "i1"], "zoë": ["i4", "i2", "i1"]}
    kept = load_dataset(source, ties=Ties.KEEP, require_title=False)
    assert sequences(kept) == SEQUENCES


def test_repeated_interactions(tmp_path: Path, form: Form) -> None:
    log: Log = [*LOG, ("bob", "i3", 90), ("bob", "i3", 91)]
    source = form.write(tmp_path / "data", log)
    assert sequences(load_dataset(source))["bob"] == [*SEQUENCES["bob"], "i3", "i3"]
    assert sequences(load_dataset(source, duplicates="first"))["bob"] == SEQUENCES["bob"]


def test_ties_are_known_where_times_are(tmp_path: Path, form: Form) -> None:
    log: Log = [(user, item, 7) for user in ("ann", "bob") for item in ("i1", "i2", "i3", "i4")]
    source = form.write(tmp_path / "data", log)
    read = read_source(source, Rules())
    assert (len(set(read.events.timestamps.tolist())) > 1) == (form.name in WITHOUT_TIMES)
    assert sequences(load_dataset(source, ties=Ties.KEEP))["ann"] == ["i1", "i2", "i3", "i4"]
    orders = {tuple(sequences(load_dataset(source, seed=seed))["ann"]) for seed in range(8)}
    assert (len(orders) > 1) == (form.name not in WITHOUT_TIMES)


@pytest.mark.parametrize("time", ["noon", "", "1e30", "nan"])
@pytest.mark.parametrize("name", [key for key, form in FORMS.items() if form.name not in WITHOUT_TIMES])
def test_a_timestamp_that_is_none(tmp_path: Path, name: str, time: str) -> None:
    form = FORMS[name]
    source = form.write(tmp_path / "data")
    line = form.add(source, form.interactions, form.row("ann", "i1", time))
    with pytest.raises(DataError, match=rf"{form.interactions}, line {line}: .*(timestamp|Time)") as error:
        load_dataset(source)
    assert "\n" not in str(error.value)


BROKEN = [
    ("plain", "interactions.tsv", "ann\ti1", "2 columns where the first line has 3"),
    ("plain", "interactions.tsv", "ann\ti1\t1\t2", "4 columns where the first line has 3"),
    ("plain", "items.jsonl", '{"item_id": "i9", "attrib', "not an item"),
    ("plain", "items.jsonl", '{"item_id": "i9", "attributes": 3}', "not an item"),
    ("2018-core", "Arts_5.json", '{"reviewerID": "ann", "asi', "not a JSON record; the file may be cut short"),
    ("2018-core", "Arts_5.json", '["ann", "i1"]', "not a JSON record"),
    ("2018-core", "Arts_5.json", '{"reviewerID": "ann", "unixReviewTime": 3}', "no field 'asin'"),
    ("2018-core", "meta_Arts.json", '{"title": "x"}', "no field 'asin'"),
    ("2018-core", "meta_Arts.json", "{'asin': open('x')}", "not a JSON record"),
    ("2018-ratings", "Arts.csv", "i1,ann,3", "3 columns where this format has 4"),
    ("2018-ratings", "Arts.csv", "i1,ann,good,3", "rating 'good' is not a number"),
    ("2023-reviews", "Arts.jsonl", '{"user_id": "ann", "timestamp": 3}', "no field 'parent_asin'"),
    ("2023-reviews", "meta_Arts.jsonl", "{", "not a JSON record"),
    ("2023-core", "Arts.csv", "ann,i1,3", "3 columns where the first line has 4"),
    ("ml-100k", "u.data", "ann i1 3 5", "1 columns where this format has 4"),
    ("ml-100k", "u.item", "i9|Title|", "3 columns where this format has 8"),
    ("ml-1m", "ratings.dat", "ann::i1::3", "3 columns where this format has 4"),
    ("ml-1m", "movies.dat", "i9::Title", "2 columns where this format has 3"),
    ("ml-csv", "ratings.csv", "ann,i1,3", "3 columns where the first line has 4"),
    ("ml-csv", "movies.csv", "i9,Comma, the,Action", "4 columns where the first line has 3"),
    ("recbole", "ml.inter", "ann\ti1\t5", "3 columns where the first line has 4"),
    ("recbole", "ml.inter", "ann\ti1\tfive\t5", "rating 'five' is not a number"),
    ("recbole", "ml.item", "i9\tTitle", "2 columns where the first line has 5"),
    ("unisrec", "Arts.test.inter", "1\t2 3", "2 columns where the first line has 3"),
    ("unisrec", "Arts.item2index", "i9", "1 columns where this format has 2"),
    ("table", "interactions.csv", "ann,i1,3,x,y", "more columns than the first line has"),
    ("table", "interactions.csv", "ann,i1", "timestamp is empty"),
    ("table", "interactions.csv", "ann,,3,x", "item is empty"),
]


@pytest.mark.parametrize(("name", "file", "line", "message"), BROKEN)
def test_broken_lines(tmp_path: Path, name: str, file: str, line: str, message: str) -> None:
    source = FORMS[name].write(tmp_path / "data")
    number = FORMS[name].add(source, file, line)
    with pytest.raises(DataError, match=rf"{file}, line {number}: {message}") as error:
        load_dataset(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", FORMS["recformer"].files(LOG, TITLES))
def test_broken_recformer_files(tmp_path: Path, file: str) -> None:
    source = FORMS["recformer"].write(tmp_path / "data")
    text = (source / file).read_text()
    (source / file).write_text("{\n" + text[1:-4])
    with pytest.raises(DataError, match=rf"{file}, line 2: not JSON"):
        load_dataset(source)
    (source / file).write_text("[]")
    with pytest.raises(DataError, match=rf"{file}, line 1: not a JSON object"):
        load_dataset(source)


def test_recformer_items_without_a_number(tmp_path: Path) -> None:
    source = FORMS["recformer"].write(tmp_path / "data")
    (source / "smap.json").write_text(json.dumps({"i1": 0}))
    with pytest.raises(DataError, match=r"(train|val|test)\.json: user \d has item \d, which smap\.json lacks"):
        load_dataset(source)


def test_damaged_gzip(tmp_path: Path, form: Form) -> None:
    for name in {form.interactions, form.catalogue}:
        source = form.write(tmp_path / name, zipped=True)
        path = source / f"{name}.gz"
        path.write_bytes(path.read_bytes()[:-12])
        with pytest.raises(DataError, match=rf"{name}\.gz.*: cannot be read") as error:
            load_dataset(source)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [key for key, form in FORMS.items() if form.name not in WITHOUT_CATALOGUE])
def test_missing_files_are_named_with_where_they_come_from(tmp_path: Path, name: str) -> None:
    form = FORMS[name]
    source = form.write(tmp_path / "data")
    (source / form.catalogue).unlink()
    with pytest.raises(DataError, match=rf"data lacks {form.catalogue} .*this format consists of .*\(from: ") as error:
        load_dataset(source, format=form.name)
    assert READERS[form.name].ORIGIN in str(error.value)


def test_a_source_that_is_not_there_names_what_its_form_wants(tmp_path: Path) -> None:
    for name, reader in READERS.items():
        with pytest.raises(DataError, match=rf"no data set or folder '.*none'; {name} is ") as error:
            load_dataset(tmp_path / "none", format=name)
        assert reader.ORIGIN in str(error.value)


def test_reviews_are_chosen_by_file_where_a_folder_holds_several(tmp_path: Path) -> None:
    both = FORMS["2018-core"].write(tmp_path / "both")
    (both / "Arts.csv").write_text(FORMS["2018-ratings"].files(LOG, TITLES)["Arts.csv"])
    with pytest.raises(DataError, match=r"both holds several files of reviews \(Arts.csv, Arts_5.json\); name one"):
        load_dataset(both)
    for name in ("Arts_5.json", "Arts.csv"):
        assert sequences(load_dataset(both / name, ties=Ties.KEEP)) == SEQUENCES


def test_amazon_texts_that_are_pieces_of_a_page(tmp_path: Path) -> None:
    """Scraped code, markup and whole pages are rejected as titles; entities and line breaks are repaired."""
    bad = {"i1": "var aPageStart = (new Date()).getTime();", "i2": '<span class="a">Glue</span>', "i3": "x" * 2000}
    good = {"i4": "L&#39;Or&eacute;al\n  Pen", "i5": "For children < 5 & > 2 years"}
    source = FORMS["2018-core"].write(tmp_path / "data", titles=bad | good)
    items = {item.identifier: dict(item.attributes) for item in read_source(source, Rules()).items}
    assert [items[item].get("title") for item in bad] == [None] * 3
    assert items["i4"] == {"title": "L'Oréal Pen", "category": "Arts Paint"}
    assert items["i5"]["title"] == "For children < 5 & > 2 years"


def test_amazon_items_there_twice_count_once(tmp_path: Path) -> None:
    source = FORMS["2018-core"].write(tmp_path / "data")
    FORMS["2018-core"].add(source, "meta_Arts.json", '{"asin": "i1", "title": "again", "categories": [["A", "B"]]}')
    assert titles(load_dataset(source)) == TITLES


def test_attributes_of_each_form(tmp_path: Path) -> None:
    expected = {
        "plain": {},
        "2018-ratings": {"category": "Arts Paint"},
        "2023-core": {"brand": "S", "category": "Arts"},
        "ml-100k": {"category": "Action Comedy"},
        "ml-1m": {"category": "Action Comedy"},
        "ml-csv": {"category": "Action Comedy"},
        "recbole": {"release_year": "1995", "category": "Action Comedy"},
        "recformer": {"brand": "B", "category": "C"},
    }
    for name, attributes in expected.items():
        found = load_dataset(FORMS[name].write(tmp_path / name)).items[0].attributes
        assert list(found.items()) == [("title", TITLES["i1"]), *attributes.items()]


def test_movielens_of_other_encodings_and_without_genres(tmp_path: Path) -> None:
    source = FORMS["ml-1m"].write(tmp_path / "utf8")
    (source / "movies.dat").write_text("i1::Amélie & more::(no genres listed)\n", encoding="utf-8")
    item = read_source(source, Rules()).items[0]
    assert dict(item.attributes) == {"title": "Amélie & more"}


def test_unisrec_takes_the_longest_history_and_numbers_where_nothing_names_them(tmp_path: Path) -> None:
    source = FORMS["unisrec"].write(tmp_path / "data")
    FORMS["unisrec"].add(source, "Arts.test.inter", "0\t1 0 1 0\t2")
    FORMS["unisrec"].add(source, "Arts.test.inter", "0\t1\t2")
    found = sequences(load_dataset(source))
    assert found["bob"] == ["i2", "i1", "i2", "i1", "i3"]  # bob is the first by time, so number 0
    assert found["zoë"] == SEQUENCES["zoë"]
    (source / "Arts.user2index").unlink()
    assert sequences(load_dataset(source))["0"] == found["bob"]


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    source = FORMS["2023-reviews"].write(tmp_path / "data")
    FORMS["2023-reviews"].add(source, "meta_Arts.jsonl", '{"parent_asin": "i9", "title": "\\ud83d pen"}')
    found = load_dataset(source)
    assert titles(found)["i9"] == "? pen"
    assert len(found.fingerprint) == 64


def test_a_folder_of_two_forms_and_a_wrong_name(tmp_path: Path) -> None:
    both = FORMS["ml-csv"].write(FORMS["recbole"].write(tmp_path / "both"))
    with pytest.raises(DataError, match=r"both could be movielens or recbole; choose one with data.format"):
        load_dataset(both)
    assert sequences(load_dataset(both, format="recbole", ties=Ties.KEEP)) == SEQUENCES
    plain = FORMS["plain"].write(tmp_path / "plain")
    with pytest.raises(DataError, match=r"plain is in the format plain, not amazon-2018; set data.format=plain"):
        load_dataset(plain, format="amazon-2018")
    with pytest.raises(DataError, match=r"data.format is .movielense.; did you mean movielens\?"):
        load_dataset(plain, format="movielense")
    with pytest.raises(DataError, match=r"data.columns and data.items apply to tables only"):
        load_dataset(plain, format="plain", columns={"user": "u"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is in no known format: .* `dasearch data formats` lists"):
        load_dataset(tmp_path / "empty")

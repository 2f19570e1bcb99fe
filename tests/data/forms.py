"""The same log and catalogue in every public format, written by hand from the formats' own descriptions."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

Log = list[tuple[str, str, int]]  # user, item, seconds; in file order
Titles = dict[str, str]  # by item; an empty one is a missing one
Files = dict[str, str]

LOG: Log = [
    ("ann", "i1", 50),
    ("bob", "i3", 10),
    ("ann", "i2", 20),
    ("bob", "i1", 40),
    ("ann", "i4", 30),
    ("zoë", "i2", 70),
    ("bob", "i2", 20),
    ("zoë", "i4", 60),
    ("ann", "i3", 10),
    ("zoë", "i1", 80),
    ("short", "i1", 5),
]
TITLES: Titles = {"i1": "Amélie & more", "i2": "Größe 5", "i3": "Comma, the", "i4": "Plain", "i5": "Never bought"}
SEQUENCES = {"ann": ["i3", "i2", "i4", "i1"], "bob": ["i3", "i2", "i1"], "zoë": ["i4", "i2", "i1"]}


@dataclass(frozen=True)
class Form:
    """Args:
    files: of a log and a catalogue, their names and contents.
    interactions, catalogue: the two of them that matter most.
    row: an interaction as its file has it, of a user, an item and a timestamp that may be anything.
    """

    name: str
    files: Callable[[Log, Titles], Files]
    interactions: str
    catalogue: str
    row: Callable[[str, str, str], str]
    latin: tuple[str, ...] = ()

    def write(self, folder: Path, log: Log = LOG, titles: Titles = TITLES, *, zipped: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files(log, titles).items():
            content = text.encode("latin-1" if name in self.latin else "utf-8")
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
        return folder

    def add(self, folder: Path, name: str, line: str) -> int:
        """Append a line to a file; returns its number."""
        path = folder / name
        encoding = "latin-1" if name in self.latin else "utf-8"
        path.write_text(path.read_text(encoding) + line + "\n", encoding)
        return path.read_text(encoding).count("\n")


def lines(rows: Iterable[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


def objects(records: Iterable[object]) -> str:
    return lines(json.dumps(record, ensure_ascii=False) for record in records)


def table(rows: Iterable[Iterable[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def histories(log: Log) -> dict[str, list[str]]:
    """Each user's items by time; ties in file order."""
    found: dict[str, list[str]] = {}
    for user, item, _ in sorted(log, key=lambda row: row[2]):
        found.setdefault(user, []).append(item)
    return found


def plain(log: Log, titles: Titles) -> Files:
    items = [{"item_id": item, "attributes": {"title": title}} for item, title in titles.items()]
    rows = [("user_id", "item_id", "timestamp"), *log]
    return {"interactions.tsv": lines("\t".join(map(str, row)) for row in rows), "items.jsonl": objects(items)}


def amazon_2018(log: Log, titles: Titles) -> Files:
    reviews = [
        {"reviewerID": u, "asin": i, "unixReviewTime": t, "overall": 5.0, "reviewText": "fine\n"} for u, i, t in log
    ]
    return {"Arts_5.json": objects(reviews), "meta_Arts.json": objects(_meta_2018(titles))}


def amazon_2018_ratings(log: Log, titles: Titles) -> Files:
    rows = lines(f"{i},{u},4.0,{t}" for u, i, t in log)
    return {"Arts.csv": rows, "meta_Arts.json": lines(map(repr, _meta_2018(titles)))}  # of 2014: literals of Python


def _meta_2018(titles: Titles) -> list[dict[str, object]]:
    return [{"asin": i, "category": ["Arts", "Paint"], **({"title": t} if t else {})} for i, t in titles.items()]


def amazon_2023(log: Log, titles: Titles) -> Files:
    reviews = [
        {"user_id": u, "parent_asin": i, "asin": f"{i}-red", "timestamp": 1000 * t, "rating": 5.0} for u, i, t in log
    ]
    return {"Arts.jsonl": objects(reviews), "meta_Arts.jsonl": objects(_meta_2023(titles))}


def amazon_2023_core(log: Log, titles: Titles) -> Files:
    rows = lines(["user_id,parent_asin,rating,timestamp", *(f"{u},{i},5.0,{1000 * t}" for u, i, t in log)])
    return {"Arts.csv": rows, "meta_Arts.jsonl": objects(_meta_2023(titles))}


def _meta_2023(titles: Titles) -> list[dict[str, object]]:
    return [
        {"parent_asin": i, "title": t, "store": "S", "main_category": "Arts", "categories": []}
        for i, t in titles.items()
    ]


def movielens_100k(log: Log, titles: Titles) -> Files:
    genres = ["unknown", "Action", "Comedy"]
    return {
        "u.data": lines(f"{u}\t{i}\t3\t{t}" for u, i, t in log),
        "u.item": lines(f"{i}|{title}|01-Jan-1995||http://x/{i}|0|1|1" for i, title in titles.items()),
        "u.genre": lines(f"{name}|{k}" for k, name in enumerate(genres)) + "\n",
    }


def movielens_1m(log: Log, titles: Titles) -> Files:
    return {
        "ratings.dat": lines(f"{u}::{i}::3::{t}" for u, i, t in log),
        "movies.dat": lines(f"{i}::{title}::Action|Comedy" for i, title in titles.items()),
    }


def movielens_csv(log: Log, titles: Titles) -> Files:
    movies = [("movieId", "title", "genres"), *((i, title, "Action|Comedy") for i, title in titles.items())]
    ratings = [("userId", "movieId", "rating", "timestamp"), *((u, i, 3.5, t) for u, i, t in log)]
    return {"ratings.csv": table(ratings), "movies.csv": table(movies), "links.csv": "movieId,imdbId\n"}


def recbole(log: Log, titles: Titles) -> Files:
    events = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tprice:float\tclass:token_seq"]
    return {
        "ml.inter": lines([*events, *(f"{u}\t{i}\t3\t{t}.0" for u, i, t in log)]),
        "ml.item": lines([*items, *(f"{i}\t{title}\t1995\t1.5\tAction Comedy" for i, title in titles.items())]),
    }


def recformer(log: Log, titles: Titles) -> Files:
    items = {item: number for number, item in enumerate(titles)}
    found = histories(log)
    users = {user: number for number, user in enumerate(found)}
    numbers = {str(users[user]): [items[item] for item in history] for user, history in found.items()}
    meta = {item: {"title": title, "brand": "B", "category": "C"} for item, title in titles.items()}
    return {
        "train.json": json.dumps({user: history[:-2] for user, history in numbers.items()}),
        "val.json": json.dumps({user: history[-2:-1] for user, history in numbers.items()}),
        "test.json": json.dumps({user: history[-1:] for user, history in numbers.items()}),
        "meta_data.json": json.dumps(meta, ensure_ascii=False),
        "smap.json": json.dumps(items),
        "umap.json": json.dumps(users, ensure_ascii=False),
    }


def unisrec(log: Log, titles: Titles) -> Files:
    items = {item: str(number) for number, item in enumerate(titles)}
    found = {user: [items[item] for item in history] for user, history in histories(log).items() if len(history) > 1}
    users = {user: str(number) for number, user in enumerate(found)}
    header = "user_id:token\titem_id_list:token_seq\titem_id:token"

    def split(cut: int) -> str:
        pairs = [(users[u], h[: len(h) - cut]) for u, h in found.items() if len(h) - cut > 1]
        return lines([header, *(f"{u}\t{' '.join(h[:-1])}\t{h[-1]}" for u, h in pairs)])

    texts = (f"{item}\t{title or '.'}" for item, title in titles.items())
    return {
        "Arts.train.inter": split(2),
        "Arts.valid.inter": split(1),
        "Arts.test.inter": split(0),
        "Arts.text": lines(["item_id:token\ttext:token_seq", *texts]),
        "Arts.user2index": lines(f"{user}\t{number}" for user, number in users.items()),
        "Arts.item2index": lines(f"{item}\t{number}" for item, number in items.items()),
    }


def table_csv(log: Log, titles: Titles) -> Files:
    rows = [("user_id", "item_id", "timestamp", "title"), *((u, i, t, titles[i]) for u, i, t in log)]
    return {"interactions.csv": table(rows)}


def text_row(template: str) -> Callable[[str, str, str], str]:
    return lambda user, item, time: template.replace("USER", user).replace("ITEM", item).replace("TIME", time)


REVIEW_2018 = '{"reviewerID": "USER", "asin": "ITEM", "unixReviewTime": "TIME"}'
REVIEW_2023 = '{"user_id": "USER", "parent_asin": "ITEM", "timestamp": "TIME", "rating": 1}'
FORMS = {
    form_id: Form(name, files, interactions, catalogue, text_row(row), latin)
    for form_id, name, files, interactions, catalogue, row, latin in (
        ("plain", "plain", plain, "interactions.tsv", "items.jsonl", "USER\tITEM\tTIME", ()),
        ("2018-core", "amazon-2018", amazon_2018, "Arts_5.json", "meta_Arts.json", REVIEW_2018, ()),
        ("2018-ratings", "amazon-2018", amazon_2018_ratings, "Arts.csv", "meta_Arts.json", "ITEM,USER,1,TIME", ()),
        ("2023-reviews", "amazon-2023", amazon_2023, "Arts.jsonl", "meta_Arts.jsonl", REVIEW_2023, ()),
        ("2023-core", "amazon-2023", amazon_2023_core, "Arts.csv", "meta_Arts.jsonl", "USER,ITEM,1,TIME", ()),
        ("ml-100k", "movielens", movielens_100k, "u.data", "u.item", "USER\tITEM\t1\tTIME", ("u.item",)),
        ("ml-1m", "movielens", movielens_1m, "ratings.dat", "movies.dat", "USER::ITEM::1::TIME", ("movies.dat",)),
        ("ml-csv", "movielens", movielens_csv, "ratings.csv", "movies.csv", "USER,ITEM,1,TIME", ()),
        ("recbole", "recbole", recbole, "ml.inter", "ml.item", "USER\tITEM\t1\tTIME", ()),
        ("recformer", "recformer", recformer, "train.json", "meta_data.json", "", ()),
        ("unisrec", "unisrec", unisrec, "Arts.test.inter", "Arts.text", "", ()),
        ("table", "table", table_csv, "interactions.csv", "interactions.csv", "USER,ITEM,TIME,x", ()),
    )
}

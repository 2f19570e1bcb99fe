"""One row by hand, sentences' order of keys, and a data set's numbers counted slowly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasearch.data import (
    Dataset,
    Item,
    LeaveOneOut,
    RowFormat,
    Sentences,
    SequenceBatch,
    Ties,
    evaluation_plan,
    item_sentence,
    load_dataset,
    statistics,
    training_plan,
)
from tests.conftest import SHARED_DATA, seeded, toy_dataset, toy_sentences


def test_a_row_by_hand() -> None:
    sentences = Sentences(((5, 6), (7,), (8, 9, 10)))
    row_format = RowFormat(seq_token=50, align_token=51, start_token=1, max_items=3)
    row = one_row([0, 2, 1, 1], sentences, row_format)
    assert row.items.tolist() == [[2, 1, 1]]
    assert row.rows.tokens.tolist() == [[1, 8, 9, 10, 50, 7, 50, 7, 50]]
    assert row.rows.segments.tolist() == [[0, 1, 1, 1, 1, 2, 2, 3, 3]]  # the repeated item is a segment of its own
    assert row.ends.tolist() == [[4, 6, 8]]


def one_row(history: list[int], sentences: Sentences, row_format: RowFormat) -> SequenceBatch:
    ((_, found),) = evaluation_plan(
        np.zeros(1, dtype=np.int64), [np.array(history)], None, sentences, row_format
    ).by_length(1)
    return found


@given(st.lists(st.integers(0, 11), min_size=1, max_size=30), st.integers(1, 8), st.integers(12, 60))
def test_a_row_is_the_longest_newest_part_that_fits(history: list[int], max_items: int, max_tokens: int) -> None:
    sentences = toy_sentences()
    row_format = RowFormat(50, 51, start_token=1, max_items=max_items, max_tokens=max_tokens)
    row = one_row(history, sentences, row_format)

    def tokens(items: list[int]) -> int:
        return 1 + sum(len(sentences.of(item)) + 1 for item in items)

    fits = [n for n in range(1, min(max_items, len(history)) + 1) if tokens(history[-n:]) <= max_tokens]
    assert row.items.tolist() == [history[-max(fits) :]]
    assert row.rows.tokens.shape[1] == tokens(row.items[0].tolist())
    assert (row.rows.tokens[0][row.ends[0]] == 50).all()


@given(st.integers(1, 40), st.integers(1, 16))
def test_widths_of_few_kinds(longest: int, multiple: int) -> None:
    """With one key in front, a batch's keys are a multiple; never narrower than its longest row."""
    width = RowFormat(50, 51, max_tokens=64, multiple=multiple).width(longest)
    assert longest <= width < longest + multiple
    assert multiple == 1 or width == 64 or (width + 1) % multiple == 0


def test_rows_of_a_batch_have_similar_lengths() -> None:
    """Sorting by length within buckets leaves much less padding than the same batches shuffled."""
    rng = np.random.default_rng(0)
    sequences = tuple(rng.integers(0, 12, rng.integers(4, 50)) for _ in range(400))
    names = tuple(f"u{k}" for k in range(400))
    dataset = Dataset("long", names, toy_dataset().items, sequences, sequences)
    development = LeaveOneOut(dataset).development
    row_format = RowFormat(50, 51, max_items=50)
    batches = list(training_plan(development, toy_sentences(), row_format).shuffled(8, seeded()))
    lengths = np.concatenate([(batch.rows.segments >= 0).sum(1).numpy() for batch in batches])

    def padding(order: np.ndarray) -> float:
        rows = lengths[order].reshape(-1, 8)
        return float(1 - rows.sum() / (8 * rows.max(axis=1)).sum())

    assert padding(np.arange(400)) < padding(rng.permutation(400)) / 2
    widths = [batch.items.shape[1] for batch in batches]
    assert widths != sorted(widths)


def test_sentences_order_their_keys() -> None:
    item = Item("x", {"colour": "red", "category": "Pens", "brand": "Ünï", "title": "Pen", "department": "Desk"})
    assert item_sentence(item) == "title Pen brand Ünï category Pens colour red department Desk"
    assert item_sentence(Item("y", {})) == ""


def test_statistics_equal_a_slow_count() -> None:
    items = (*(Item(str(k), {"title": "a b"}) for k in range(5)), Item("5", {"brand": "c"}))
    sequences = ((0, 1, 0, 2), (3, 3, 3), (1, 2, 4, 0, 1))
    stamps = ((1, 2, 3, 3), (1, 1, 2), (1, 2, 3, 4, 4))
    dataset = Dataset("s", ("a", "b", "c"), items, tuple(map(np.array, sequences)), tuple(map(np.array, stamps)))
    found = statistics(dataset)
    repeats = sum(count - 1 for s in sequences for count in Counter(s).values())
    assert (found.users, found.items, found.interactions, found.train_interactions) == (3, 6, 12, 6)
    assert (found.mean_length, found.median_length, found.longest) == (4, 4, 5)
    assert found.repeated == pytest.approx(repeats / 12)
    assert found.density == pytest.approx((12 - repeats) / 18)
    assert found.tied_last == pytest.approx(2 / 3)
    assert (found.items_with_interactions, found.items_with_title, found.median_words) == (5, 5, 3)
    assert found.train_interactions / found.users + 2 == found.mean_length  # SPEC 6, check 20


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is absent")
def test_shuffling_keeps_the_share_of_tied_last_items() -> None:
    shuffled, kept = (load_dataset(SHARED_DATA / "online-retail", ties=ties) for ties in (Ties.SHUFFLE, Ties.KEEP))
    assert statistics(shuffled).tied_last == statistics(kept).tied_last == pytest.approx(0.951, abs=0.001)
    changed = [not np.array_equal(a, b) for a, b in zip(shuffled.sequences, kept.sequences, strict=True)]
    assert np.mean(changed) > 0.9
    for a, b in zip(shuffled.timestamps, kept.timestamps, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is absent")
def test_amazon_games_numbers() -> None:
    found = statistics(load_dataset(SHARED_DATA / "amazon-games"))
    assert (found.users, found.items, found.items_with_title) == (50_546, 16_845, 16_845)
    assert found.longest == 771

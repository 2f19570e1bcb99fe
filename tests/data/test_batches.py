"""Rows against a slow builder; every user once an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dasearch.data import (
    Item,
    ItemRows,
    LeaveOneOut,
    RowFormat,
    evaluation_plan,
    item_sentence,
    tokenise_items,
    training_plan,
)
from tests.conftest import seeded, toy_dataset, toy_format, toy_sentences, word_tokenizer

SENTENCES, FORMAT = toy_sentences(), toy_format()
DEVELOPMENT = LeaveOneOut(toy_dataset()).development


def slow_row(items: list[int], row_format: RowFormat = FORMAT) -> tuple[list[int], list[int], list[int]]:
    tokens = [] if row_format.start_token is None else [row_format.start_token]
    segments, ends = [0] * len(tokens), []
    for number, item in enumerate(items):
        sentence = [*SENTENCES.of(item).tolist(), row_format.seq_token]
        segments += [number + len(row_format.start)] * len(sentence)
        tokens += sentence
        ends.append(len(tokens) - 1)
    return tokens, segments, ends


@pytest.mark.parametrize("start", [None, 1])
def test_training_rows_equal_the_slow_builder(start: int | None) -> None:
    row_format = RowFormat(seq_token=50, align_token=51, start_token=start, max_items=3, max_tokens=128)
    seen = []
    plan = training_plan(DEVELOPMENT, SENTENCES, row_format)
    batches = list(plan.shuffled(4, seeded()))
    assert len(batches) == plan.n_batches(4)
    assert [len(batch.users) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    for batch in batches:
        for row, user in enumerate(batch.users.tolist()):
            seen.append(user)
            train = DEVELOPMENT.train[user].tolist()
            inputs, targets = train[-4:-1], train[-len(train[-4:-1]) :]
            tokens, segments, ends = slow_row(inputs, row_format)
            n, m = len(inputs), len(tokens)
            assert batch.rows.tokens[row].tolist() == tokens + [0] * (batch.rows.tokens.shape[1] - m)
            assert batch.rows.segments[row].tolist() == segments + [-1] * (batch.rows.segments.shape[1] - m)
            assert batch.ends[row, :n].tolist() == ends
            assert batch.items[row, :n].tolist() == inputs
            assert batch.targets[row, :n].tolist() == targets
            assert (batch.targets[row, n:] == -1).all()
            assert (batch.items[row, n:] == -1).all()
    assert sorted(seen) == [u for u, s in enumerate(DEVELOPMENT.train) if len(s) > 1]


def test_training_order_follows_its_generator() -> None:
    def order(seed: int) -> list[int]:
        batches = training_plan(DEVELOPMENT, SENTENCES, FORMAT).shuffled(4, seeded(seed))
        return [user for batch in batches for user in batch.users.tolist()]

    assert order(1) == order(1) != order(2)


def test_evaluation_rows_hold_the_newest_history_and_one_target() -> None:
    users = DEVELOPMENT.users
    seen = []
    plan = evaluation_plan(users, DEVELOPMENT.train, DEVELOPMENT.valid, SENTENCES, FORMAT)
    for places, batch in plan.by_length(7):
        last = batch.last
        assert users[places].tolist() == batch.users.tolist()
        for row, user in enumerate(batch.users.tolist()):
            seen.append(user)
            history = DEVELOPMENT.train[user][-FORMAT.max_items :].tolist()
            assert batch.items[row, : len(history)].tolist() == history
            assert int(last[row]) == len(history) - 1
            assert batch.targets[row, last[row]] == DEVELOPMENT.valid[user]
            assert (batch.targets[row] >= 0).sum() == 1
    assert sorted(seen) == users.tolist()


def test_a_row_that_is_too_long_drops_its_oldest_items() -> None:
    history = np.array([0, 1, 2, 3], dtype=np.int64)
    sizes = SENTENCES.lengths[history] + 1
    room = RowFormat(50, 51, start_token=1, max_items=50, max_tokens=1 + int(sizes[2:].sum()))
    ((_, batch),) = evaluation_plan(np.zeros(1, dtype=np.int64), [history], None, SENTENCES, room).by_length(1)
    assert batch.items.tolist() == [[2, 3]]
    assert batch.rows.tokens.shape[1] == room.max_tokens
    tight = RowFormat(50, 51, max_items=50, max_tokens=1)
    ((_, batch),) = evaluation_plan(np.zeros(1, dtype=np.int64), [history], None, SENTENCES, tight).by_length(1)
    assert batch.items.tolist() == [[3]]  # [SEQ] and the newest item are never cut


@pytest.mark.parametrize("group", [True, False])
def test_alignment_rows(group: bool) -> None:
    rows = ItemRows([9, 8], SENTENCES, FORMAT, prompt_group=group)
    items = torch.tensor([3, 0])
    found, ends = rows.select(items), rows.ends(items)
    for k, item in enumerate(items.tolist()):
        sentence = SENTENCES.of(item).tolist()
        tokens = [1, 9, 8, *sentence, FORMAT.align_token]
        assert found.tokens[k, : len(tokens)].tolist() == tokens
        assert found.tokens[k, ends[k]] == FORMAT.align_token
        prompt = 1 if group else 2
        assert found.segments[k, : len(tokens)].tolist() == [0, prompt, prompt, *[1] * (len(sentence) + 1)]


def test_sentences_put_the_title_first_and_keep_it() -> None:
    item = Item("x", {"title": "w5 w6", "brand": "w7"})
    assert item_sentence(item) == "title w5 w6 brand w7"
    tokenizer = word_tokenizer()
    assert tokenise_items([item], tokenizer) == ((2, 5, 6, 2, 7),)  # 2: unknown words "title" and "brand"
    assert tokenise_items([item], tokenizer, max_tokens=3) == ((2, 5, 6),)


def test_padded_table() -> None:
    tokens, real = SENTENCES.padded(torch.tensor([2, 5]), pad_token=0)
    for k, item in enumerate((2, 5)):
        assert tokens[k][real[k]].tolist() == SENTENCES.of(item).tolist()
        assert not tokens[k][~real[k]].any()

"""Batched recommendations against single ones and against the evaluation's ranks, and rejected requests."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasearch.data import LeaveOneOut
from dasearch.errors import ModelFolderError
from dasearch.training import evaluation
from dasearch.training.evaluation import rank_validation
from dasearch.training.recommender import Recommender
from tests.conftest import toy_dataset
from tests.training.studies import recommender

KINDS = ("darec", "idle", "ra-rec", "darec + encoder", "idle + encoder")
ITEMS = [item.identifier for item in toy_dataset(60, 40).items]
REQUESTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(ITEMS), min_size=1, max_size=9),  # a row holds 5 items, the ID encoder reads 6
        st.none() | st.sampled_from([f"u{n}" for n in range(60)]),
    ),
    max_size=12,
)


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest) -> Recommender:
    return recommender(request.param)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(requests=REQUESTS, batch_size=st.integers(1, 5), include_seen=st.booleans())
def test_a_batch_equals_single_requests(
    kind: str, requests: list[tuple[list[str], str | None]], batch_size: int, include_seen: bool
) -> None:
    opened = recommender(kind)
    histories, users = [history for history, _ in requests], [user for _, user in requests]
    found = opened.recommend_many(histories, 40, users=users, include_seen=include_seen, batch_size=batch_size)
    assert len(found) == len(requests)
    for answer, (history, user) in zip(found, requests, strict=True):
        alone = {one.item: one.score for one in opened.recommend(history, 40, user=user, include_seen=include_seen)}
        assert {one.item: one.score for one in answer} == pytest.approx(alone, rel=1e-5, abs=1e-5)
        assert set(alone) == set(ITEMS) - (set() if include_seen else set(history))
        assert [one.score for one in answer] == sorted((one.score for one in answer), reverse=True)


def test_positions_are_the_ranks_of_the_evaluation(opened: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    development = LeaveOneOut(toy_dataset(60, 40)).development
    bits = opened.model.layout_tensor(opened.layout)
    ranks = rank_validation(opened.model, opened.catalogue, development, bits).ranks
    monkeypatch.setattr(evaluation, "SCORES_IN_MEMORY", 90)  # so that a batch is scored in pieces
    histories = [[ITEMS[item] for item in sequence] for sequence in development.train]
    found = opened.recommend_many(
        histories, 40, users=[f"u{user}" for user in development.users], include_seen=True, batch_size=7
    )
    places = [
        [one.item for one in answer].index(ITEMS[target]) + 1
        for answer, target in zip(found, development.valid.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(places, ranks)


def test_a_history_of_everything_leaves_nothing(opened: Recommender) -> None:
    assert opened.recommend(ITEMS) == []
    assert {one.item for one in opened.recommend(ITEMS, len(ITEMS), include_seen=True)} == set(ITEMS)


def test_fewer_items_are_the_first_of_more(opened: Recommender) -> None:
    histories = [["item3"], ["item1", "item2", "item3"], ["item7", "item7"]]
    more = opened.recommend_many(histories, 12)
    assert opened.recommend_many(histories, 5) == [answer[:5] for answer in more]
    titles = {item.identifier: item.attributes["title"] for item in opened.items}
    assert all(one.title == titles[one.item] for answer in more for one in answer)


def test_users_have_their_own_vectors(opened: Recommender) -> None:
    """The same history for an unknown user and for two training users; IDLE-Adapter and RA-Rec read only histories."""
    scores = [
        {one.item: one.score for one in answer}
        for answer in opened.recommend_many([["item1", "item2"]] * 3, 40, users=[None, "u1", "u2"])
    ]
    same = opened.settings.model.kind != "darec"
    assert all((one == pytest.approx(other, abs=1e-5)) is same for one, other in pairwise(scores))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"histories": [["item1"], ["itm1"]]}, r"^histories\[1\]: unknown item 'itm1'; did you mean item1\?$"),
        ({"histories": [["item1"], []]}, r"^histories\[1\]: the history is empty; give at least one item id$"),
        (
            {"users": ["u1", "nobody"]},
            r"^histories\[1\]: unknown user 'nobody'.*; leave user out to go by the history$",
        ),
        ({"users": ["u1"]}, r"^1 users for 2 histories; give one for each, None for someone else$"),
        ({"k": 0}, r"^k is 0; ask for at least 1 item$"),
        ({"batch_size": 0}, r"^batch_size is 0; answer at least 1 history at a time$"),
    ],
)
def test_what_cannot_be_answered_is_named(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ModelFolderError, match=sentence):
        recommender("darec").recommend_many(**{"histories": [["item1"], ["item2"]], **arguments})
    with pytest.raises(ModelFolderError, match=r"^unknown item 'itm1'"):
        recommender("darec").recommend(["itm1"])


@pytest.mark.parametrize(("kind", "encoder"), [("darec", None), ("darec + encoder", "sasrec"), ("idle", "sasrec")])
def test_the_layout_file_names_the_encoder_that_is_read(kind: str, encoder: str | None) -> None:
    assert recommender(kind).layout_file.encoder == encoder

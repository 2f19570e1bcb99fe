"""ID encoders: routing and losses against reference implementations, and one contract for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dasearch.errors import StudyError
from dasearch.models.id_encoders import ENCODERS, EncoderBatch, EncoderSettings, FactorEncoder, IDEncoder, build_encoder
from dasearch.models.id_encoders.base import softmax_loss
from dasearch.models.id_encoders.bidirectional import BERT4Rec
from dasearch.models.id_encoders.comirec import ComiRecDR, ComiRecSA, route, squash
from dasearch.models.id_encoders.features import FDSA, standardised
from dasearch.models.id_encoders.sequential import SASRec
from tests.conftest import seeded

USERS, ITEMS, WIDTH, HISTORY = 5, 9, 6, 7
HISTORIES = torch.tensor([[3, 1, 4, 1, 5], [2, 6, -1, -1, -1], [8, -1, -1, -1, -1]])
TEXTS = torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(5))
PEOPLE = torch.tensor([0, 3, 4])


def make(name: str, **changes: object) -> IDEncoder:
    settings = EncoderSettings(name=name, width=WIDTH, history=HISTORY, heads=2, **changes)  # type: ignore[arg-type]
    return build_encoder(settings, USERS, ITEMS, TEXTS, seeded()).eval()


@pytest.fixture(params=sorted(ENCODERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batch(histories: Tensor = HISTORIES) -> EncoderBatch:
    """The target is the item after next of a ring."""
    targets = torch.where(histories >= 0, (histories + 2) % ITEMS, -1)
    return EncoderBatch(PEOPLE, histories, targets, torch.where(targets >= 0, (targets + 1) % ITEMS, 0))


def test_shapes(name: str) -> None:
    encoder = make(name)
    assert encoder.user_embedding(PEOPLE, HISTORIES).shape == (3, 1, encoder.width)
    assert encoder.item_embedding(HISTORIES.clamp(min=0)).shape == (3, 5, encoder.width)
    assert encoder.scores(PEOPLE, HISTORIES).shape == (3, ITEMS)
    assert encoder.loss(batch()).shape == ()


def test_more_padding_changes_nothing(name: str) -> None:
    encoder = make(name)
    longer = torch.cat([HISTORIES, torch.full((3, 2), -1)], dim=1)
    torch.testing.assert_close(encoder.user_embedding(PEOPLE, longer), encoder.user_embedding(PEOPLE, HISTORIES))
    torch.testing.assert_close(encoder.scores(PEOPLE, longer), encoder.scores(PEOPLE, HISTORIES))


def test_rows_do_not_see_each_other(name: str) -> None:
    encoder, turned = make(name), torch.tensor([2, 0, 1])
    whole = encoder.scores(PEOPLE, HISTORIES)
    torch.testing.assert_close(encoder.scores(PEOPLE[turned], HISTORIES[turned]), whole[turned])
    torch.testing.assert_close(encoder.scores(PEOPLE[2:], HISTORIES[2:, :1]), whole[2:])


def test_weights_depend_on_the_seed_and_the_global_state_is_untouched(name: str) -> None:
    before = torch.random.get_rng_state()
    first, second = make(name), make(name)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_every_parameter_learns(name: str) -> None:
    encoder = make(name).train()
    encoder.loss(batch()).backward()
    silent = [n for n, p in encoder.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert silent == (["model.out.bias"] if name == "neumf" else [])  # a common offset cancels in BPR


def test_loss_falls(name: str) -> None:
    encoder = make(name)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = encoder.loss(batch())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.6 * losses[0]  # a mean: BERT4Rec draws other masks in every step


def test_unknown_name() -> None:
    with pytest.raises(StudyError, match="there is no ID encoder 'sasrek'; did you mean sasrec"):
        make("sasrek")


def routed_by_loops(votes: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cen et al. 2020, alg. 1, one number at a time."""
    batch_, interests, n, width = votes.shape
    found = np.zeros((batch_, interests, width))
    weights = np.zeros((batch_, interests, n))
    for b in range(batch_):
        logits = np.zeros((interests, n))
        for _ in range(3):
            for i in range(n):
                shares = np.exp(logits[:, i]) / np.exp(logits[:, i]).sum()
                weights[b, :, i] = shares if real[b, i] else 0.0
            for k in range(interests):
                total = sum(weights[b, k, i] * votes[b, k, i] for i in range(n))
                length = np.linalg.norm(total)
                found[b, k] = length**2 / (1 + length**2) * total / length
            for k in range(interests):
                for i in range(n):
                    logits[k, i] += votes[b, k, i] @ found[b, k]
    return found, weights


def test_routing_by_loops() -> None:
    votes = torch.randn(2, 3, 4, 5, generator=seeded(), dtype=torch.float64)
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    interests, weights = route(votes, real)
    expected, shares = routed_by_loops(votes.numpy(), real.numpy())
    np.testing.assert_allclose(interests.numpy(), expected, atol=1e-8)
    np.testing.assert_allclose(weights.numpy(), shares, atol=1e-8)
    torch.testing.assert_close(weights.sum(1), real.double())
    assert bool((interests.norm(dim=-1) < 1).all())


def test_no_gradient_passes_through_the_first_rounds() -> None:
    votes = torch.randn(1, 2, 3, 4, generator=seeded(), dtype=torch.float64, requires_grad=True)
    interests, weights = route(votes, torch.ones(1, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(interests.sum(), votes)
    fixed = squash((weights.detach()[..., None] * votes).sum(2))
    torch.testing.assert_close(gradient, torch.autograd.grad(fixed.sum(), votes)[0])


def test_squash_keeps_the_direction() -> None:
    vectors = torch.randn(20, 4, generator=seeded(), dtype=torch.float64) * 3
    found, length = squash(vectors), vectors.norm(dim=-1)
    torch.testing.assert_close(found.norm(dim=-1), length**2 / (1 + length**2))
    torch.testing.assert_close(torch.cosine_similarity(found, vectors), torch.ones(20, dtype=torch.float64))
    assert bool(squash(torch.zeros(1, 4)).isfinite().all())


def test_routing_maps_are_indexed_by_recency() -> None:
    """The newest item's map is the same in a short history and in a long one."""
    encoder = make("comirec-dr")
    assert isinstance(encoder, ComiRecDR)
    with torch.no_grad():
        encoder.maps[1:] = 0.0
    alone = encoder.interests(torch.tensor([[5, -1, -1]]))
    last = encoder.interests(torch.tensor([[7, 2, 5]]))
    torch.testing.assert_close(alone, last)


def test_self_attention_by_hand() -> None:
    encoder = make("comirec-sa")
    assert isinstance(encoder, ComiRecSA)
    weights = encoder.weights(HISTORIES)
    torch.testing.assert_close(weights.sum(1), torch.ones(3, 4))
    assert bool((weights[1, 2:] == 0).all())
    items = encoder.items.weight[HISTORIES[1, :2]]
    inner = torch.tanh((items + encoder.places[[1, 0]]) @ encoder.inner.weight.T)
    shares = torch.softmax(inner @ encoder.outer.weight.T, dim=0)
    torch.testing.assert_close(encoder.interests(HISTORIES)[1], shares.T @ items)


@pytest.mark.parametrize("name", ["comirec-dr", "comirec-sa"])
def test_pools_of_interests(name: str) -> None:
    tokens = make(name, pool="as_tokens")
    every = tokens.user_embedding(PEOPLE, HISTORIES)
    assert every.shape == (3, 4, WIDTH)
    torch.testing.assert_close(make(name).user_embedding(PEOPLE, HISTORIES).squeeze(1), every.mean(1))
    chosen = make(name, pool="last_item").user_embedding(PEOPLE, HISTORIES).squeeze(1)
    newest = tokens.item_embedding(torch.tensor([5, 6, 8]))
    best = (every @ newest[..., None]).squeeze(-1).argmax(1)
    torch.testing.assert_close(chosen, every[torch.arange(3), best])
    scores = (every @ tokens.item_embedding(torch.arange(ITEMS)).T).amax(1)
    torch.testing.assert_close(tokens.scores(PEOPLE, HISTORIES), scores)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "fdsa"])
def test_states_are_causal(name: str) -> None:
    encoder = make(name)
    changed = HISTORIES.clone()
    changed[0, 3] = 7
    before, after = encoder.states(HISTORIES)[0], encoder.states(changed)[0]  # type: ignore[operator]
    torch.testing.assert_close(before[:3], after[:3])
    assert not torch.allclose(before[3], after[3])


def test_sasrec_drops_out_in_training_only() -> None:
    encoder = make("sasrec", dropout=0.5)
    assert isinstance(encoder, SASRec)
    assert torch.equal(encoder.states(HISTORIES), encoder.states(HISTORIES))
    encoder.train()
    with torch.random.fork_rng():
        assert not torch.equal(encoder.states(HISTORIES), encoder.states(HISTORIES))


def test_softmax_loss_by_hand() -> None:
    table = torch.nn.Embedding(ITEMS, WIDTH)
    states, targets = torch.randn(2, WIDTH, generator=seeded()), torch.tensor([4, 0])
    logits = states @ table.weight.T
    expected = -(logits.softmax(1)[torch.arange(2), targets]).log().mean()
    torch.testing.assert_close(softmax_loss(states, targets, table, None), expected)
    sampled = torch.tensor([4, 7])  # the first row's own target does not count against it
    first = torch.logsumexp(logits[0, [4, 7]], 0) - logits[0, 4]
    second = torch.logsumexp(logits[1, [0, 4, 7]], 0) - logits[1, 0]
    torch.testing.assert_close(softmax_loss(states, targets, table, sampled), (first + second) / 2)


@pytest.mark.parametrize("name", ["mf", "neumf"])
def test_factors_score_like_their_own_pairs(name: str) -> None:
    encoder = make(name)
    assert isinstance(encoder, FactorEncoder)
    scores = encoder.scores(PEOPLE, HISTORIES)
    for row, user in enumerate(PEOPLE.tolist()):
        own = encoder.model.scores(torch.full((ITEMS,), user), torch.arange(ITEMS))
        torch.testing.assert_close(scores[row], own)


@pytest.mark.parametrize("name", ["mf", "neumf"])
def test_an_unknown_user_s_vector_is_estimated_from_the_history(name: str) -> None:
    """Users whose vectors are a linear map of their items' mean: ridge regression finds the map."""
    encoder = make(name)
    assert isinstance(encoder, FactorEncoder)
    sequences = [torch.tensor([k, (k + 1) % ITEMS, (k + 3) % ITEMS]) for k in range(USERS)]
    with torch.no_grad():
        encoder.model.items.weight.normal_(generator=seeded(4))
        for user, sequence in enumerate(sequences):
            encoder.model.users.weight[user] = 2 * encoder.model.items.weight[sequence].mean(0)
    encoder.fit_cold_start(torch.arange(USERS), sequences)
    stranger = encoder.user_embedding(torch.tensor([-1]), sequences[2][None])
    torch.testing.assert_close(stranger[0, 0], encoder.model.users.weight[2], atol=0.02, rtol=0.02)
    known = encoder.user_embedding(torch.tensor([2]), sequences[0][None])
    assert torch.equal(known[0, 0], encoder.model.users.weight[2])


def test_bert4rec_sees_both_sides_but_no_masked_item() -> None:
    encoder = make("bert4rec")
    assert isinstance(encoder, BERT4Rec)
    rows, masked = torch.tensor([[3, 1, 4, 1]]), torch.tensor([[False, True, False, False]])
    before = encoder.states(rows, masked)
    hidden = encoder.states(torch.tensor([[3, 7, 4, 1]]), masked)
    later = encoder.states(torch.tensor([[3, 1, 4, 7]]), masked)
    assert torch.equal(before, hidden)
    assert not torch.allclose(before[0, 1], later[0, 1])


def test_bert4rec_predicts_at_a_mask_after_the_history() -> None:
    """Its state for a history is the state at a masked item right after it."""
    encoder = make("bert4rec")
    assert isinstance(encoder, BERT4Rec)
    asked = encoder.user_embedding(torch.tensor([0]), torch.tensor([[3, 1, -1]]))
    trained = encoder.states(torch.tensor([[3, 1, 6]]), torch.tensor([[False, False, True]]))
    torch.testing.assert_close(asked[0, 0], trained[0, 2])


def test_fdsa_reads_texts() -> None:
    """Without its item stream only the text identifies the purchased item; equal texts give equal states."""
    encoder = make("fdsa")
    assert isinstance(encoder, FDSA)
    with torch.no_grad():
        encoder.join.weight[:, :WIDTH] = 0.0
        encoder.texts[4] = encoder.texts[5]
    states = encoder.states(torch.tensor([[3, 4], [3, 5], [3, 6]]))
    torch.testing.assert_close(states[0], states[1])
    assert not torch.allclose(states[0, 1], states[2, 1])


def test_text_vectors_are_standardised() -> None:
    texts = torch.randn(50, 3, generator=seeded()) * torch.tensor([5.0, 0.1, 0.0]) + 7
    found = standardised(texts)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std(0, correction=0)[:2], torch.ones(2), atol=1e-3, rtol=0)

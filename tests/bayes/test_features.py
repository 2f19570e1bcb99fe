"""Contrasts, features and kernels against enumeration of every point."""

from __future__ import annotations

import pytest
import torch

from dasearch.bayes.choices import Choices, among
from dasearch.bayes.features import ISOTROPIC, LINEAR, PAIRS, SCALE_REACH, dictionary
from tests.bayes.spaces import every, layered, seeded

ORDERED = [
    Choices((4,), positions=((0.0, 0.2, 0.7, 1.0),)),
    Choices.named({"lr": 4, "size": 3, "kind": 3}, {"lr": (0.0, 0.3, 0.7, 1.0), "size": (0.0, 0.5, 1.0)}),
    Choices.named(
        {"layer01.a": 2, "layer02.a": 2, "layer01.b": 3, "layer02.b": 3, "lr": 4, "kind": 2},
        {"lr": (0.0, 0.3, 0.7, 1.0)},
    ),
]
SPACES = [
    Choices.binary(4),
    Choices((2, 3, 4)),
    layered(3, 2),
    layered(2, 2, 3),
    Choices((2,)),
    Choices((3,)),
    *ORDERED,
]


@pytest.mark.parametrize("choices", SPACES)
def test_contrasts_are_orthogonal_with_unit_variance(choices: Choices) -> None:
    columns = choices.contrasts(every(choices))
    count = len(choices.columns)
    assert count == sum(choices.sizes) - choices.d
    torch.testing.assert_close(columns.mean(0), torch.zeros(count, dtype=torch.float64))
    torch.testing.assert_close(columns.T @ columns / choices.count, torch.eye(count, dtype=torch.float64))


def test_layers_are_parsed_from_names_if_there_are_several() -> None:
    assert Choices.named({"layer01.a": 2, "layer02.a": 2}).places == ((1, "a"), (2, "a"))
    assert Choices.named({"layer01.a": 2, "layer02.a": 2, "lr": 3}).places == ((1, "a"), (2, "a"), None)
    assert Choices.named({"layer01.a": 2, "layer01.b": 2}).places is None


@pytest.mark.parametrize("choices", ORDERED)
def test_an_ordered_variable_s_effect_is_smooth_over_its_scale(choices: Choices) -> None:
    """Its covariance is a Gaussian kernel with the mean over the grid removed, whatever the other variables."""
    features = dictionary(choices)
    variable = next(i for i, positions in enumerate(choices.positions or ()) if positions)
    at = torch.tensor((choices.positions or ())[variable], dtype=torch.float64)
    codes = torch.zeros(len(at), choices.d)
    codes[:, variable] = torch.arange(len(at))
    own = features.features(choices.contrasts(codes))[:, [name == "ordered" for name in features.component]]
    found = own @ own.T
    kernel = torch.exp(-(at[:, None] - at).square() / (2 * SCALE_REACH**2))
    centre = torch.eye(len(at), dtype=torch.float64) - 1 / len(at)
    expected = centre @ kernel @ centre
    others = [i for i, positions in enumerate(choices.positions or ()) if positions and i != variable]
    if not others:  # the other variables are at their first value and add a constant
        found, expected = found / found.trace(), expected / expected.trace()
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    gap = (found.diagonal()[:, None] + found.diagonal() - 2 * found) / 2
    assert (gap[0].diff() > 0).all()  # similarity falls with distance


def test_an_ordered_variable_does_not_change_the_components_of_unordered_ones() -> None:
    """The components of the sites equal those of a space with only the sites."""
    sites = layered(3, 2)
    names = {f"layer{k + 1:02d}.site{s}": 2 for k in range(3) for s in range(2)}
    both = Choices.named({**names, "lr": 5}, {"lr": (0.0, 0.25, 0.5, 0.75, 1.0)})
    codes = torch.randint(2, (40, 6), generator=seeded())
    wide = torch.cat([codes, torch.full((40, 1), 2)], 1)
    alone, beside = dictionary(sites), dictionary(both)
    for name in alone.names[:-2]:
        if name != LINEAR:  # shared among more columns
            own, other = (
                one.features(choices.contrasts(points))[:, [part == name for part in one.component]]
                for one, choices, points in ((alone, sites, codes), (beside, both, wide))
            )
            torch.testing.assert_close(own @ own.T, other @ other.T)


def test_effect_rows_are_differences_of_choices() -> None:
    choices = Choices((3, 2))
    points = choices.contrasts(torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
    weights = torch.randn(3, generator=seeded(), dtype=torch.float64)
    values = points @ weights  # of an additive function
    found = choices.effect_rows() @ weights
    torch.testing.assert_close(found, values[1:] - values[0])


@pytest.mark.parametrize("choices", SPACES)
def test_every_component_has_variance_one_over_random_points(choices: Choices) -> None:
    features = dictionary(choices)
    points = choices.contrasts(every(choices))
    square = features.features(points).square().mean(0)
    for name in features.names[:-2]:
        belongs = torch.tensor([component == name for component in features.component])
        assert float(square[belongs].sum()) == pytest.approx(1)
    assert features.names[0] == LINEAR
    assert features.names[-2:] == (PAIRS, ISOTROPIC)
    assert (len(features.names) > 3) == (choices.places is not None or choices.positions is not None)


@pytest.mark.parametrize("choices", SPACES)
def test_kernels_by_their_definitions(choices: Choices) -> None:
    codes = every(choices)
    points = choices.contrasts(codes)
    features = dictionary(choices)
    hamming = (codes[:, None] != codes).sum(-1)
    torch.testing.assert_close(
        features.isotropic_kernel(points, points), torch.exp(-hamming.double() / features.lengthscale)
    )
    count = len(choices.columns)
    variable = choices.column_variable.tolist()
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count) if variable[i] != variable[j]]
    assert features.pair_weight == (1 / len(pairs) if pairs else 0)
    products = torch.stack([points[:, i] * points[:, j] for i, j in pairs], 1) if pairs else torch.zeros(len(codes), 0)
    expected = products.double() @ products.double().T * features.pair_weight
    torch.testing.assert_close(features.pair_kernel(points, points), expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(features.pair_variance(points), expected.diagonal(), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("choices", SPACES)
def test_isotropic_weights_are_the_kernel_s_expansion(choices: Choices) -> None:
    """The weight of a column's product with itself is that kernel's projection on it."""
    features = dictionary(choices)
    points = choices.contrasts(every(choices))
    kernel = features.isotropic_kernel(points, points)
    level, raised = features.isotropic_weights()
    assert float(kernel.mean()) == pytest.approx(level)
    for i in range(points.shape[1]):
        projected = points[:, i] @ kernel @ points[:, i] / len(points) ** 2
        assert float(projected) == pytest.approx(level * float(raised[i]))


@pytest.mark.parametrize("choices", [layered(3, 2), layered(3, 2, 3), layered(2, 2, 5)])
def test_components_are_invariant_to_the_order_of_a_site_s_choices(choices: Choices) -> None:
    """Renumbering choices in all layers leaves the prior covariance unchanged."""
    features = dictionary(choices)
    codes = choices.uniform(40, seeded(1))
    order = torch.arange(choices.sizes[0], dtype=torch.float64).flip(0)
    before, after = (features.features(choices.contrasts(points)) for points in (codes, order[codes.long()]))
    assert not torch.equal(before, after)
    for name in features.names[:-2]:
        belongs = torch.tensor([component == name for component in features.component])
        covariances = (found[:, belongs] @ found[:, belongs].T for found in (before, after))
        torch.testing.assert_close(*covariances, msg=lambda found, name=name: f"{name}: {found}")


def test_depth_components_join_layers_and_linear_does_not() -> None:
    choices = layered(8, 1)
    features = dictionary(choices)
    units = torch.eye(len(choices.columns) + len(features.pairs), dtype=torch.float64)  # a column or a product alone
    of_columns = torch.cat([part.features(units) for part in features.parts])[:, : len(choices.columns)]
    cosine = {}
    for name in (LINEAR, "site, shared", "site, smooth", "site, quick"):
        belongs = torch.tensor([component == name for component in features.component])
        coefficients = of_columns[belongs].T @ of_columns[belongs]
        cosine[name] = [float(coefficients[0, k] / coefficients[0, 0]) for k in (1, 7)]
    assert cosine[LINEAR] == pytest.approx([0, 0])
    assert cosine["site, shared"] == pytest.approx([1, 1])
    assert cosine["site, smooth"] == pytest.approx(
        [torch.exp(torch.tensor(-(k**2) / 8)).item() for k in (1, 7)], abs=1e-4
    )
    assert cosine["site, quick"] == pytest.approx(
        [torch.exp(torch.tensor(-(k**2) / 2)).item() for k in (1, 7)], abs=1e-4
    )


@pytest.mark.parametrize(
    "choices",
    [layered(4, 2, 3), Choices((2, 3, 2, 2, 3), ((1, "a"), (1, "b"), (2, "a"), (3, "a"), (3, "b")))],  # one has no b
)
def test_pair_components_by_their_definitions(choices: Choices) -> None:
    """Products of columns of the same kind, with a covariance over depth; scaled to variance one."""
    assert choices.places is not None
    features = dictionary(choices)
    points = choices.contrasts(choices.uniform(20, seeded(1)))
    place = [(*choices.places[i], k) for i, k in choices.columns]  # layer, site, choice
    ordered = [(i, j) for i in range(len(place)) for j in range(len(place))]
    found = {
        "within a layer": [
            (i, j) for i, j in ordered if i < j and place[i][0] == place[j][0] and place[i][1] != place[j][1]
        ],
        "neighbouring layers": [(i, j) for i, j in ordered if (place[i][0] + 1, place[i][1]) == place[j][:2]],
    }
    layers = max(layer for layer, _, _ in place)
    for name, pairs in found.items():
        kind = [place[i][1:] + place[j][1:] for i, j in pairs]
        alike = torch.tensor([[float(a == b) for b in kind] for a in kind], dtype=torch.float64)
        depth = torch.tensor([float(place[i][0]) for i, _ in pairs], dtype=torch.float64)
        smooth = torch.exp(-(depth[:, None] - depth).square() / (2 * (layers / 4) ** 2))
        products = torch.stack([points[:, i] * points[:, j] for i, j in pairs], 1)
        for word, kernel in (("each", torch.eye(len(pairs)).double()), ("shared", alike), ("smooth", alike * smooth)):
            belongs = torch.tensor([component == f"{name}, {word}" for component in features.component])
            own = features.features(points)[:, belongs]
            torch.testing.assert_close(own @ own.T, products @ (kernel / len(pairs)) @ products.T, rtol=1e-5, atol=1e-5)


def test_among() -> None:
    codes = every(Choices((2, 3)))
    assert among(codes, codes[[1, 4]]).tolist() == [False, True, False, False, True, False]
    assert not among(codes, codes[:0]).any()

"""Pre-training of ID encoders: learning, reproducibility, caching, loading, and rejected files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dasearch.data import LeaveOneOut
from dasearch.errors import StudyError
from dasearch.models.id_encoders import ENCODERS, EncoderSettings, IDEncoder, build_encoder
from dasearch.training import encoders as encoders_module
from dasearch.training.encoders import (
    EncoderTraining,
    encoder_batches,
    encoder_ranks,
    needs_training,
    read_encoder,
    study_encoder,
    training_seconds,
    write_encoder,
)
from dasearch.training.materials import StudyContext
from dasearch.training.metrics import summarise
from dasearch.training.preparation import prepare_study
from dasearch.training.shared import Outcome, Passing, PurchaseIndex, SharedInputs
from tests.conftest import seeded, toy_dataset
from tests.training.studies import materials, small_settings

DEVELOPMENT = LeaveOneOut(toy_dataset(120, 12)).development
PURCHASES = PurchaseIndex(DEVELOPMENT)
TEXTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(5))


def settings(name: str, **changes: object) -> EncoderSettings:
    values = {"name": name, "width": 16, "history": 8, "epochs": 12, "lr": 1e-2, "batch_size": 32, **changes}
    return EncoderSettings.model_validate(values)


def trained(
    wanted: EncoderSettings, seed: int = 0, inputs: SharedInputs | None = None
) -> tuple[IDEncoder, dict[str, float]]:
    """An encoder at its best epoch, and that epoch's validation metrics."""
    given = (DEVELOPMENT, PURCHASES, TEXTS)
    if inputs is not None:
        given = (inputs.development, inputs.purchases, inputs.text_vectors)
    training = EncoderTraining(wanted, *given, seed)
    while not training.over:
        training.epoch()
    return training.trained(), training.progress.best.metrics


@pytest.mark.parametrize(
    ("name", "least"),
    [("comirec-sa", 0.33), ("comirec-dr", 0.33), ("sasrec", 0.5), ("gru4rec", 0.5), ("bert4rec", 0.4), ("fdsa", 0.5)],
)
def test_sequence_encoders_learn_the_ring(name: str, least: float) -> None:
    """The next item is one or two further on; a random order of twelve items has an MRR of .26, and so has popularity.

    ComiRec averages over the history and knows the order only from positions.
    """
    encoder, validation = trained(settings(name, epochs=25, dropout=0.0))
    assert validation["MRR"] > least
    ranks = encoder_ranks(encoder, DEVELOPMENT.users, DEVELOPMENT.train, DEVELOPMENT.valid)
    assert summarise(ranks).record() == validation


@pytest.mark.parametrize("name", ["mf", "neumf"])
def test_factors_learn_who_bought_what(name: str) -> None:
    wanted, users = settings(name), torch.arange(len(DEVELOPMENT.users))
    encoder = build_encoder(wanted, len(users), 12, TEXTS, seeded())
    optimizer = torch.optim.Adam(encoder.parameters(), lr=wanted.lr)
    for _ in range(20):
        for batch in encoder_batches(encoder, wanted, DEVELOPMENT, PURCHASES, seeded(1)):
            optimizer.zero_grad()
            encoder.loss(batch).backward()
            optimizer.step()
    scores = encoder.scores(users, torch.zeros(len(users), 1, dtype=torch.long)).detach()
    bought = PURCHASES.bought(users.repeat_interleave(12), torch.arange(12).repeat(len(users))).view(-1, 12)
    assert (scores[bought][:, None] > scores[~bought]).float().mean() > 0.7


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_repeats_bit_for_bit_whatever_the_global_seed(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, _ = trained(settings(name, epochs=2))
        torch.manual_seed(2)
        second, _ = trained(settings(name, epochs=2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    other, _ = trained(settings(name, epochs=2), seed=1)
    assert any(
        not torch.equal(a, b) for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_sampled_softmax_learns_too() -> None:
    _, validation = trained(settings("sasrec", negatives=4, epochs=25, dropout=0.0))
    assert validation["MRR"] > 0.5


def study(**encoder: object) -> tuple[EncoderSettings, StudyContext]:
    whole = small_settings(model={"kind": "idle"}, encoder=encoder)
    return whole.encoder, materials(whole)  # type: ignore[attr-defined]


def test_trained_once_then_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path))
    wanted, ready = study()
    heard: list[str] = []
    first = study_encoder(wanted, ready, 5, heard.append)
    assert "training the ID encoder sasrec" in heard
    heard.clear()
    second = study_encoder(wanted, ready, 5, heard.append)
    assert heard == []
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    study_encoder(wanted, ready, 6, heard.append)
    assert heard


def test_training_reports_epochs_and_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path))
    wanted, ready = study()
    heard: list[str] = []
    study_encoder(wanted, ready, 5, heard.append)
    begins, *epochs, done = heard
    assert type(begins) is str
    assert [type(text) for text in epochs] == [Passing] * wanted.epochs
    assert epochs[-1].startswith(f"ID encoder sasrec, epoch {wanted.epochs}/{wanted.epochs}: validation NDCG@10 0.")
    assert isinstance(done, Outcome)
    best = max(text.rpartition(" ")[2] for text in epochs)
    assert done.startswith(f"ID encoder sasrec: validation NDCG@10 {best}  ")


def test_timing_does_not_change_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted, ready = study()
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / "plain"))
    plain = study_encoder(wanted, ready, 5, lambda _: None)
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / "timed"))
    assert needs_training(wanted, ready, 5)
    drawn = torch.get_rng_state()
    once = training_seconds(wanted, ready)
    assert once > 0
    assert torch.equal(torch.get_rng_state(), drawn)
    timed = study_encoder(wanted, ready, 5, lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), timed.parameters(), strict=True))
    assert not needs_training(wanted, ready, 5)
    assert needs_training(wanted, ready, 6)
    assert not needs_training(wanted.model_copy(update={"epochs": 0}), ready, 6)


@pytest.mark.parametrize("name", ["sasrec", "mf", "comirec-sa"])
def test_time_estimates_cover_all_epochs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a clock that advances by a second per step: steps of all batches of all epochs."""
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path))
    _, ready = study()
    wanted, ticks, steps = settings(name, epochs=7), [0.0], []

    def stepped(*args: object) -> torch.Tensor:
        steps.append(args)
        ticks[0] += 1.0
        return torch.zeros(())

    monkeypatch.setattr(encoders_module, "_step", stepped)
    monkeypatch.setattr(encoders_module.time, "perf_counter", lambda: ticks[0])
    expected = training_seconds(wanted, ready)
    steps.clear()
    trained(wanted.model_copy(update={"epochs": 1}), inputs=ready)
    assert expected == 7 * len(steps)


def written(tmp_path: Path) -> tuple[Path, EncoderSettings, StudyContext]:
    wanted, ready = study()
    path = tmp_path / "sasrec.safetensors"
    encoder, validation = trained(wanted, inputs=ready)
    write_encoder(path, encoder, wanted, ready, validation)
    return path, wanted, ready


def test_an_encoder_of_another_catalogue(tmp_path: Path) -> None:
    path, _, _ = written(tmp_path)
    other = toy_dataset(60, 25, name="elsewhere")
    whole = small_settings(model={"kind": "idle"}, encoder={"file": str(path)})
    reason = r"another catalogue \(toy, 40 items\) than the study's \(elsewhere, 25 items\); leave encoder.file out"
    with pytest.raises(StudyError, match=reason):
        prepare_study(whole, other, LeaveOneOut(other).development)


def test_an_encoder_of_other_users(tmp_path: Path) -> None:
    path, wanted, _ = written(tmp_path)
    fewer = toy_dataset(50, 40)
    whole = small_settings(model={"kind": "idle"})
    ready = prepare_study(whole, fewer, LeaveOneOut(fewer).development)
    with pytest.raises(StudyError, match="was trained on 60 users and the study has 50"):
        read_encoder(path, wanted, ready)


def test_an_encoder_of_another_kind_or_none(tmp_path: Path) -> None:
    path, wanted, ready = written(tmp_path)
    with pytest.raises(StudyError, match=r"has name sasrec and encoder.name is gru4rec; set them to the same value"):
        read_encoder(path, wanted.model_copy(update={"name": "gru4rec"}), ready)
    with pytest.raises(StudyError, match=r"has width 8 and encoder.width is 16"):
        read_encoder(path, wanted.model_copy(update={"width": 16}), ready)
    with pytest.raises(StudyError, match=r"there is no ID encoder file nothing; leave encoder.file out"):
        read_encoder(Path("nothing"), wanted, ready)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StudyError, match="cannot be read"):
        read_encoder(path, wanted, ready)


def training(name: str, checkpoint: Path | None = None, identity: str = "mine") -> EncoderTraining:
    wanted = settings(name, epochs=4, patience=4)
    return EncoderTraining(wanted, DEVELOPMENT, PURCHASES, TEXTS, 0, checkpoint=checkpoint, identity=identity)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_resumes_from_a_checkpoint_to_the_same_weights(tmp_path: Path, name: str) -> None:
    """Interrupted after two of four epochs and resumed with a new object."""
    whole, place = training(name), tmp_path / "encoder.safetensors"
    expected = [whole.epoch() for _ in range(4)]
    first = training(name, place)
    found = [first.epoch(), first.epoch()]
    second = training(name, place)
    assert len(second.progress.epochs) == 2
    found += [second.epoch(), second.epoch()]
    assert second.over
    assert [(one.losses, one.metrics) for one in found] == [(one.losses, one.metrics) for one in expected]
    ours, theirs = (one.trained().state_dict() for one in (second, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert training(name, place, identity="another's").progress.epochs == []

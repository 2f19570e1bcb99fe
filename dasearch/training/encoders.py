"""ID encoders: training once per study, caching, loading from a file, and ranking by their own scores.

A trained encoder is one safetensors file with a record of its training; the cache key covers the data, the settings and the
seed.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dasearch.data import Development, IntArray
from dasearch.data.rows import stack
from dasearch.errors import StudyError
from dasearch.models.cache import default_cache
from dasearch.models.id_encoders import EncoderBatch, EncoderSettings, IDEncoder, Reads, build_encoder, encoder_entry
from dasearch.training.checkpoints import load_tensors, prefixed, save_tensors, under
from dasearch.training.metrics import summarise, target_ranks
from dasearch.training.progress import SELECTION, Epoch, Progress
from dasearch.training.seeds import derive_seed, generator_for
from dasearch.training.shared import Outcome, Passing, PurchaseIndex, Say, SharedInputs

RECIPE_VERSION = 1  # part of the cache key: increase it when the training changes
TIMED_STEPS, TIMED_USERS = 4, 256  # steps and users of a time estimate, which takes less than a second
SCORED = 2**19  # users x items per block of scores


def study_encoder(settings: EncoderSettings, materials: SharedInputs, seed: int, say: Say) -> IDEncoder:
    """The study's encoder: from its file or the cache, or trained now and cached; untrained for 0 epochs.

    Raises:
        StudyError: if the file cannot be read, or belongs to another catalogue, other users or other settings.
    """
    known = known_encoder(settings, materials, seed)
    if known is not None:
        return known
    say(f"training the ID encoder {settings.name}")
    training = encoder_training(settings, materials, seed)
    encoder = kept_encoder(training, materials, say)
    say(outcome_words(settings, training.progress))
    return encoder


def known_encoder(settings: EncoderSettings, materials: SharedInputs, seed: int) -> IDEncoder | None:
    """The study's encoder if it needs no training: from its file or the cache, or untrained for 0 epochs; else None.

    Raises:
        StudyError: as `study_encoder`.
    """
    if settings.file is not None:
        return read_encoder(Path(settings.file), settings, materials)
    if settings.epochs == 0:
        development = materials.development
        generator, texts = generator_for(seed, "encoder", settings.name), materials.text_vectors.cpu()
        encoder = build_encoder(settings, development.n_users, development.n_items, texts, generator)
        return encoder.to(materials.device).eval()
    path = _cached(_key(settings, materials, seed))
    return read_encoder(path, settings, materials) if path.is_file() else None


def encoder_training(
    settings: EncoderSettings, materials: SharedInputs, seed: int, checkpoint: Path | None = None
) -> EncoderTraining:
    """The training of the study's encoder, new or resumed from its checkpoint."""
    return EncoderTraining(
        settings,
        materials.development,
        materials.purchases,
        materials.text_vectors.cpu(),
        seed,
        checkpoint=checkpoint,
        identity=_key(settings, materials, seed),
    )


def kept_encoder(training: EncoderTraining, materials: SharedInputs, say: Say = lambda _: None) -> IDEncoder:
    """The encoder of a training by `encoder_training`, which is completed first if necessary; written to the cache."""
    path = _cached(training.identity)
    while not training.over:
        say(epoch_words(training.settings, training.epoch()))
    write_encoder(path, training.trained(), training.settings, materials, training.progress.best.metrics)
    return read_encoder(path, training.settings, materials)


def _cached(key: str) -> Path:
    return default_cache() / "encoders" / f"{key}.safetensors"


def needs_training(settings: EncoderSettings, materials: SharedInputs, seed: int) -> bool:
    """Whether `study_encoder` would train the encoder now rather than load it."""
    return settings.file is None and settings.epochs > 0 and not _cached(_key(settings, materials, seed)).is_file()


def training_seconds(settings: EncoderSettings, materials: SharedInputs) -> float:
    """Estimated seconds of its training on this machine: a few timed steps and rankings, extrapolated to all epochs.

    Early stopping reduces it.
    """
    development, generator = materials.development, generator_for("estimate", settings.name)
    texts = materials.text_vectors.cpu()
    encoder = build_encoder(settings, development.n_users, development.n_items, texts, generator)
    optimizer = _optimizer(encoder, settings)
    with torch.random.fork_rng(devices=[]):
        lines = _lines(encoder, settings, development, materials.purchases, generator)
        batches = _batched(lines, settings, development, materials.purchases, generator)
        ends = [time.perf_counter()]
        for batch in islice(batches, 1 + TIMED_STEPS):
            _step(encoder, optimizer, batch)
            ends.append(time.perf_counter())
    timed = ends[1:] if len(ends) > 2 else ends  # the first step is a warm-up
    step = (timed[-1] - timed[0]) / max(1, len(timed) - 1)
    users = slice(0, TIMED_USERS)
    encoder_ranks(encoder, development.users[:1], development.train[:1], development.valid[:1])
    began = time.perf_counter()
    encoder_ranks(encoder, development.users[users], development.train[users], development.valid[users])
    ranking = (time.perf_counter() - began) * max(1.0, len(development.users) / TIMED_USERS)
    return settings.epochs * (step * math.ceil(len(lines) / settings.batch_size) + ranking)


def _key(settings: EncoderSettings, materials: SharedInputs, seed: int) -> str:
    digest = hashlib.sha256(
        json.dumps([RECIPE_VERSION, seed, settings.model_dump(mode="json")], sort_keys=True).encode()
    )
    digest.update(json.dumps(_made_from(materials), sort_keys=True).encode())
    for sequence in (*materials.development.train, materials.development.valid):
        digest.update(sequence.astype("<i8").tobytes() + b"\n")
    if encoder_entry(settings.name).reads_texts:
        digest.update(materials.text_vectors.cpu().numpy().tobytes())
    return digest.hexdigest()[:24]


def _made_from(materials: SharedInputs) -> dict[str, str | int]:
    catalogue, development = materials.catalogue, materials.development
    return {
        "dataset": catalogue.dataset_name,
        "catalogue": catalogue.items_hash,
        "items": development.n_items,
        "users": development.n_users,
    }


def write_encoder(
    path: Path, encoder: IDEncoder, settings: EncoderSettings, materials: SharedInputs, validation: dict[str, float]
) -> None:
    """Write an encoder with a record of its training data and settings."""
    record = {"encoder": settings.model_dump(mode="json"), "made_from": _made_from(materials), "validation": validation}
    save_tensors(path, encoder.state_dict(), record)


def read_encoder(path: Path, settings: EncoderSettings, materials: SharedInputs) -> IDEncoder:
    """Load an encoder that `write_encoder` wrote, for the same catalogue.

    Raises:
        StudyError: if it is missing, damaged, of another kind or size, or made from another catalogue or other users.
    """
    if not path.is_file():
        raise StudyError(f"there is no ID encoder file {path}; leave encoder.file out to train one")
    try:
        tensors, record = load_tensors(path)
        made, stored = record["made_from"], record["encoder"]
    except (ValueError, KeyError) as error:
        raise StudyError(f"the ID encoder file cannot be read: {error}") from None
    here = _made_from(materials)
    if made["catalogue"] != here["catalogue"]:
        raise StudyError(
            f"the ID encoder {path} was trained on another catalogue ({made['dataset']}, {made['items']} items) than "
            f"the study's ({here['dataset']}, {here['items']} items); leave encoder.file out to train one"
        )
    if made["users"] != here["users"]:
        raise StudyError(
            f"the ID encoder {path} was trained on {made['users']} users and the study has {here['users']}; "
            "leave encoder.file out to train one"
        )
    for name in ("name", "width", "history", "interests", "layers", "heads"):
        if stored[name] != getattr(settings, name):
            raise StudyError(
                f"the ID encoder {path} has {name} {stored[name]} and encoder.{name} is {getattr(settings, name)}; "
                "set them to the same value"
            )
    try:
        return filled_encoder(settings, materials, tensors)
    except RuntimeError:
        raise StudyError(
            f"the ID encoder {path} does not fit its own settings; leave encoder.file out to train one"
        ) from None


def filled_encoder(settings: EncoderSettings, materials: SharedInputs, tensors: Mapping[str, Tensor]) -> IDEncoder:
    """An encoder with stored weights.

    Raises:
        RuntimeError: if they do not match the settings.
    """
    development = materials.development
    texts = torch.zeros_like(materials.text_vectors, device="cpu")  # placeholder: the weights include the texts
    encoder = build_encoder(settings, development.n_users, development.n_items, texts, generator_for("loading"))
    encoder.load_state_dict(dict(tensors))
    return encoder.to(materials.device).eval()


def epoch_words(settings: EncoderSettings, epoch: Epoch) -> Passing:
    """The progress line of an encoder's epoch."""
    place = f"epoch {epoch.number + 1}/{settings.epochs}"
    return Passing(f"ID encoder {settings.name}, {place}: validation {SELECTION} {epoch.metrics[SELECTION]:.4f}")


def outcome_words(settings: EncoderSettings, progress: Progress) -> Outcome:
    """The result line of an encoder's training."""
    best, seconds = progress.best.metrics[SELECTION], sum(epoch.seconds for epoch in progress.epochs)
    return Outcome(f"ID encoder {settings.name}: validation {SELECTION} {best:.4f}  {seconds:.1f} s")


class EncoderTraining:
    """The training of one encoder, epoch by epoch.

    It runs on the CPU, so that it is reproducible bit for bit; dropout uses a generator whose state is saved after each epoch.

    Args:
        settings: the encoder's kind, sizes and training.
        development: users' training and validation items.
        purchases: index of training purchases, for negatives.
        texts: text vectors of the items.
        seed: seed of initial weights and data order.
        checkpoint: file that is written after each epoch and resumed from; the checkpoint of another training is ignored.
        identity: key that identifies the training in its checkpoint.

    Attributes:
        order, dropout: states of the generators of the data order and of dropout.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        development: Development,
        purchases: PurchaseIndex,
        texts: Tensor,
        seed: int,
        *,
        checkpoint: Path | None = None,
        identity: str = "",
    ) -> None:
        self.settings, self.development, self.purchases = settings, development, purchases
        self.checkpoint, self.identity = checkpoint, identity
        generator = generator_for(seed, "encoder", settings.name)
        self.encoder = build_encoder(settings, development.n_users, development.n_items, texts, generator)
        self.optimizer = _optimizer(self.encoder, settings)
        self.order = generator.get_state()
        self.dropout = torch.Generator().manual_seed(derive_seed(seed, "encoder dropout")).get_state()
        self.progress, self.best = Progress(), dict[str, Tensor]()
        if checkpoint is not None and checkpoint.is_file():
            self._resume(checkpoint)

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or early stopping applies."""
        return len(self.progress.epochs) >= self.settings.epochs or self.progress.stale(self.settings.patience)

    def epoch(self) -> Epoch:
        """Train on every row once, validate, and save the checkpoint."""
        began, development = time.perf_counter(), self.development
        loss = self._optimise()
        users, sequences = torch.from_numpy(development.users), [torch.from_numpy(s) for s in development.train]
        self.encoder.fit_cold_start(users, sequences)
        ranks = encoder_ranks(self.encoder, development.users, development.train, development.valid)
        metrics, seconds = summarise(ranks).record(), time.perf_counter() - began
        epoch = Epoch(len(self.progress.epochs), {"total": loss}, metrics, seconds)
        if self.progress.add(epoch):
            self.best = {name: tensor.detach().clone() for name, tensor in self.encoder.state_dict().items()}
        if self.checkpoint is not None:
            self._save(self.checkpoint)
        return epoch

    def trained(self) -> IDEncoder:
        """The encoder with the weights of its best epoch, in evaluation mode."""
        self.encoder.load_state_dict(self.best)
        return self.encoder.eval()

    def _optimise(self) -> float:
        """Run one epoch; returns the mean loss of its batches."""
        losses, generator = list[Tensor](), torch.Generator()
        generator.set_state(self.order)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.dropout)
            self.encoder.train()
            for batch in encoder_batches(self.encoder, self.settings, self.development, self.purchases, generator):
                losses.append(_step(self.encoder, self.optimizer, batch))
            self.dropout = torch.get_rng_state()
        self.order = generator.get_state()
        return float(torch.stack(losses).mean()) if losses else 0.0

    def _save(self, path: Path) -> None:
        tensors = {
            **prefixed("parameter", self.encoder.state_dict()),
            **prefixed("best", self.best),
            "order": self.order,
            "dropout": self.dropout,
        }
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= prefixed(f"optimizer/{number}", state)
        save_tensors(path, tensors, {"identity": self.identity, "progress": self.progress.record()})

    def _resume(self, path: Path) -> None:
        tensors, record = load_tensors(path)
        if record.get("identity") != self.identity:
            return
        self.encoder.load_state_dict(under("parameter", tensors))
        moments, own = under("optimizer", tensors), self.optimizer.state_dict()
        numbers = dict.fromkeys(name.partition("/")[0] for name in moments)
        own["state"] = {int(number): under(number, moments) for number in numbers}
        self.optimizer.load_state_dict(own)
        self.best, self.order, self.dropout = under("best", tensors), tensors["order"], tensors["dropout"]
        self.progress = Progress.from_record(record["progress"])


def _optimizer(encoder: IDEncoder, settings: EncoderSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(encoder.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)


def _step(encoder: IDEncoder, optimizer: torch.optim.Optimizer, batch: EncoderBatch) -> Tensor:
    """Take one optimiser step; returns the batch's loss."""
    loss = encoder.loss(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def encoder_batches(
    encoder: IDEncoder,
    settings: EncoderSettings,
    development: Development,
    purchases: PurchaseIndex,
    generator: torch.Generator,
) -> Iterator[EncoderBatch]:
    """The batches of one epoch, as the encoder reads them: distinct purchases, whole rows, or single targets."""
    lines = _lines(encoder, settings, development, purchases, generator)
    yield from _batched(lines, settings, development, purchases, generator)


def _batched(
    lines: Sequence[Line],
    settings: EncoderSettings,
    development: Development,
    purchases: PurchaseIndex,
    generator: torch.Generator,
) -> Iterator[EncoderBatch]:
    for chosen in torch.randperm(len(lines), generator=generator).split(settings.batch_size):
        picked = [lines[k] for k in chosen.tolist()]
        owners = torch.tensor([user for user, _, _ in picked])
        targets = stack([target for _, _, target in picked], -1)
        sampled = None
        if settings.negatives is not None:
            sampled = torch.randint(development.n_items, (settings.negatives,), generator=generator)
        unbought = purchases.sample_negatives(owners[:, None].expand_as(targets).flatten(), generator)
        yield EncoderBatch(owners, stack([h for _, h, _ in picked], -1), targets, unbought.view_as(targets), sampled)


def _lines(
    encoder: IDEncoder,
    settings: EncoderSettings,
    development: Development,
    purchases: PurchaseIndex,
    generator: torch.Generator,
) -> list[Line]:
    if encoder.reads is Reads.PAIRS:
        users, items = purchases.pairs()
        return [(int(user), item[None], item[None]) for user, item in zip(users, items.numpy(), strict=True)]
    if encoder.reads is Reads.PLACES:
        return _whole_rows(settings, development)
    return _single_targets(settings, development, generator)


Line = tuple[int, IntArray, IntArray]  # user, history, target after each position


def _whole_rows(settings: EncoderSettings, development: Development) -> list[Line]:
    n = settings.history
    return [
        (user, sequence[:-1][-n:], sequence[1:][-n:])
        for user, sequence in zip(development.users.tolist(), development.train, strict=True)
        if len(sequence) > 1
    ]


def _single_targets(settings: EncoderSettings, development: Development, generator: torch.Generator) -> list[Line]:
    """``settings.targets`` random positions of each user, each with the preceding history."""
    rows: list[Line] = []
    for user, sequence in zip(development.users.tolist(), development.train, strict=True):
        cuts = torch.randperm(max(0, len(sequence) - 1), generator=generator)[: settings.targets] + 1
        for cut in cuts.tolist():
            history = sequence[:cut][-settings.history :]
            targets = np.full(len(history), -1, dtype=np.int64)
            targets[-1] = sequence[cut]
            rows.append((user, history, targets))
    return rows


@torch.inference_mode()
def encoder_ranks(encoder: IDEncoder, users: IntArray, histories: Sequence[IntArray], targets: IntArray) -> IntArray:
    """Rank of each target among all items by the encoder's own scores, ``(users,)``."""
    encoder.eval()
    device = next(encoder.parameters()).device
    ranks = []
    wanted = torch.from_numpy(targets)
    at_once = max(1, SCORED // encoder.n_items)
    for start in range(0, len(users), at_once):
        part = slice(start, start + at_once)
        rows = stack([h[-encoder.history :] for h in histories[part]], -1).to(device)
        scores = encoder.scores(torch.from_numpy(users[part]).to(device), rows)
        ranks.append(target_ranks(scores.float(), wanted[part].to(device)).cpu())
    return torch.cat(ranks).numpy()

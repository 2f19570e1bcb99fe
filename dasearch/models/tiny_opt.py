"""``tiny-opt``: an OPT model small enough for a laptop, trained on the catalogue's own text.

It provides the quickstart with a language model that has read the catalogue, without pre-trained weights. Its training rows
repeat sentences of a small pool, so that using the context pays off, as it does in the text that real models are trained on.
It is trained on item texts only, never on an interaction.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from dasearch.folders import written_beside

TINY_OPT = "tiny-opt"
PAD, START, UNKNOWN = "<pad>", "</s>", "<unk>"  # OPT begins every row with </s>
RECIPE_VERSION = 1  # part of the cache key: increase it when the training changes
RISE = 0.1  # share of steps until the peak learning rate; doubled if it were one step, which OneCycleLR cannot handle
TIMED_STEPS = 20  # steps of an estimate; a tenth of them are warm-up, which must be at least two
Progress = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True)
class TinyOPTSettings:
    """Sizes and training of ``tiny-opt``; all of them are part of the cache key."""

    layers: int = 4
    width: int = 64
    heads: int = 4
    ffn: int = 256
    vocabulary: int = 2000
    max_tokens: int = 1024
    steps: int = 400
    batch_size: int = 16
    row_tokens: int = 192
    pool: int = 8  # distinct sentences that a row is drawn from
    lr: float = 3e-3
    seed: int = 0


def tiny_opt(
    sentences: Sequence[str],
    settings: TinyOPTSettings,
    *,
    cache: Path,
    prompt: str = "",
    progress: Progress | None = None,
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerFast]:
    """The cached model for these sentences and settings, trained if it does not exist yet.

    Args:
        sentences: the catalogue's item sentences.
        settings: sizes and training of the model.
        cache: folder with one sub-folder per content hash.
        prompt: additional text for the tokenizer's training.
        progress: called after each training step.
    """
    folder = cache / content_hash(sentences, settings, prompt)
    if not (folder / "config.json").is_file():
        _train_into(folder, sentences, settings, prompt, progress)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return transformers.OPTModel.from_pretrained(folder, use_safetensors=True), tokenizer


def training_seconds(sentences: Sequence[str], settings: TinyOPTSettings, *, cache: Path, prompt: str = "") -> float:
    """Estimated seconds that `tiny_opt` takes on this machine, from a few timed steps; 0 for a cached model."""
    if (cache / content_hash(sentences, settings, prompt) / "config.json").is_file():
        return 0.0
    began = time.perf_counter()
    tokenizer = train_tokenizer(sentences, settings.vocabulary, prompt)
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in sentences]
    reading, ends = time.perf_counter() - began, list[float]()
    few = replace(settings, steps=min(settings.steps, TIMED_STEPS))
    _train_model(encoded, len(tokenizer), few, lambda *_: ends.append(time.perf_counter()))
    return reading + settings.steps * (ends[-1] - ends[0]) / max(1, len(ends) - 1)  # the first step is a warm-up


def untrained_tiny_opt(
    sentences: Sequence[str], settings: TinyOPTSettings, *, prompt: str = ""
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerFast]:
    """The same model with random weights, without using the cache: for counting parameters and estimating time."""
    tokenizer = train_tokenizer(sentences, settings.vocabulary, prompt)
    return transformers.OPTModel(config_of(len(tokenizer), settings)), tokenizer


def content_hash(sentences: Sequence[str], settings: TinyOPTSettings, prompt: str = "") -> str:
    """24 hexadecimal digits that identify the text, the settings and the recipe's version."""
    content = json.dumps([RECIPE_VERSION, asdict(settings), prompt, list(sentences)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def train_tokenizer(
    sentences: Sequence[str], vocabulary: int, prompt: str = ""
) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the catalogue; every byte is a token, so any text can be encoded."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sentences, *([prompt] * 8)], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=START, unk_token=UNKNOWN
    )


def _train_into(
    folder: Path, sentences: Sequence[str], settings: TinyOPTSettings, prompt: str, progress: Progress | None
) -> None:
    tokenizer = train_tokenizer(sentences, settings.vocabulary, prompt)
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in sentences]
    model = _train_model(encoded, len(tokenizer), settings, progress)
    with written_beside(folder) as unfinished:
        model.model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def _train_model(
    encoded: list[list[int]], vocabulary: int, settings: TinyOPTSettings, progress: Progress | None
) -> transformers.OPTForCausalLM:
    generator = torch.Generator().manual_seed(settings.seed)
    model = transformers.OPTForCausalLM(config_of(vocabulary, settings))
    _initialise(model, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01)
    rise = RISE * settings.steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=settings.steps, pct_start=RISE if rise != 1 else 2 * RISE
    )
    model.train()
    for step in range(settings.steps):
        rows = _rows(encoded, settings, generator)
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, settings.steps, loss.item())
    return model.eval()


def config_of(vocabulary: int, settings: TinyOPTSettings) -> transformers.OPTConfig:
    """The configuration of a model with these sizes."""
    return transformers.OPTConfig(
        vocab_size=vocabulary,
        hidden_size=settings.width,
        word_embed_proj_dim=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        ffn_dim=settings.ffn,
        max_position_embeddings=settings.max_tokens,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )


def _initialise(model: transformers.OPTForCausalLM, generator: torch.Generator) -> None:
    """OPT's own initialisation (normal, sd 0.02; norms at one), using the given generator."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02, generator=generator)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module.bias is not None:
                module.bias.zero_()


def _rows(encoded: list[list[int]], settings: TinyOPTSettings, generator: torch.Generator) -> Tensor:
    """Training rows ``(batch_size, row_tokens)``: each concatenates sentences of a small pool, with repetitions."""
    rows = []
    for _ in range(settings.batch_size):
        pool = torch.randint(len(encoded), (settings.pool,), generator=generator).tolist()
        row = [1]
        while len(row) < settings.row_tokens:
            row.extend(encoded[pool[int(torch.randint(settings.pool, (), generator=generator))]])
        rows.append(row[: settings.row_tokens])
    return torch.tensor(rows)

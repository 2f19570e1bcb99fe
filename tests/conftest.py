"""Random tiny models and data, built here: no test downloads anything."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from sqlalchemy import Engine, event
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, OPTConfig, OPTModel, PreTrainedTokenizerFast

from dasearch.data import Dataset, Item, RowFormat, Rows, Sentences
from dasearch.models.backbone import FrozenBackbone

torch.set_num_threads(1)  # tensors here are tiny; more threads would only wait for each other
SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"
WIDTH, LAYERS, HEADS, VOCABULARY = 32, 2, 4, 50
FAMILIES = ("opt", "llama")  # decoders
ALL_FAMILIES = (*FAMILIES, "bert")


@event.listens_for(Engine, "connect")
def _unsynchronised(connection: object, _: object) -> None:
    """No test cuts the power, and a small study commits hundreds of times, each of which would wait for the disk."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Dropout and masks draw from torch's global stream: a test sees the same numbers whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """tiny-opt models of tests, and of fixtures of any scope, live in pytest's own folder, shared by the tests of one session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASEARCH_CACHE", str(tmp_path_factory.getbasetemp().parent / "dasearch-cache"))
        yield


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_model(family: str, layers: int = LAYERS) -> OPTModel | LlamaModel | BertModel:
    """A random model; fork_rng keeps the global stream as it was."""
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if family == "opt":
            config = OPTConfig(ffn_dim=64, word_embed_proj_dim=WIDTH, dropout=0.0, **common)
            model = OPTModel(config)
        elif family == "bert":
            model = BertModel(BertConfig(intermediate_size=64, **common))
        else:
            config = LlamaConfig(intermediate_size=64, num_key_value_heads=2, **common)
            model = LlamaModel(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms too, so that a forgotten one shows
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.data.normal_(std=0.15)
    return model.eval()


def tiny_backbone(family: str = "opt", layers: int = LAYERS) -> FrozenBackbone:
    return FrozenBackbone(tiny_model(family, layers), name=family)


@pytest.fixture(params=ALL_FAMILIES)
def any_family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def word_tokenizer(words: int = VOCABULARY) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="</s>", unk_token="<unk>")


def toy_sentences(n_items: int = 12, seed: int = 0) -> Sentences:
    rng = np.random.default_rng(seed)
    return Sentences(tuple(tuple(rng.integers(3, VOCABULARY, rng.integers(1, 5)).tolist()) for _ in range(n_items)))


def toy_format(max_items: int = 6) -> RowFormat:
    return RowFormat(
        seq_token=VOCABULARY,
        align_token=VOCABULARY + 1,
        pad_token=0,
        start_token=1,
        max_items=max_items,
        max_tokens=128,
    )


def toy_rows(lengths: tuple[tuple[int, ...], ...] = ((2, 3, 2), (3, 1)), seed: int = 0) -> Rows:
    """Rows of items with so many tokens each, right-padded; the last token of an item is [SEQ]."""
    rng = np.random.default_rng(seed)
    m = max(sum(row) for row in lengths)
    tokens = torch.zeros(len(lengths), m, dtype=torch.long)
    segments = torch.full_like(tokens, -1)
    for b, row in enumerate(lengths):
        at = 0
        for item, size in enumerate(row):
            tokens[b, at : at + size] = torch.as_tensor(rng.integers(3, VOCABULARY, size))
            tokens[b, at + size - 1] = VOCABULARY
            segments[b, at : at + size] = item
            at += size
    return Rows(tokens, segments)


def toy_dataset(n_users: int = 40, n_items: int = 12, seed: int = 0, name: str = "toy") -> Dataset:
    """Users who walk a ring of items, so that there is an order to learn."""
    rng = np.random.default_rng(seed)
    items = tuple(
        Item(f"item{i}", {"title": f"w{3 + i} w{20 + i % 5}", "brand": f"w{40 + i % 3}"}) for i in range(n_items)
    )
    sequences = []
    for _ in range(n_users):
        steps = rng.choice([1, 1, 1, 2], rng.integers(4, 9))
        sequences.append(((rng.integers(n_items) + np.cumsum(steps)) % n_items).astype(np.int64))
    stamps = tuple(np.arange(len(s), dtype=np.int64) for s in sequences)
    return Dataset(name, tuple(f"u{i}" for i in range(n_users)), items, tuple(sequences), stamps)


def write_folder(folder: Path, dataset: Dataset) -> Path:
    """The data set as interactions.tsv and items.jsonl."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user_id\titem_id\ttimestamp"]
    for user, sequence, stamps in zip(dataset.users, dataset.sequences, dataset.timestamps, strict=True):
        lines += [f"{user}\t{dataset.items[i].identifier}\t{t}" for i, t in zip(sequence, stamps, strict=True)]
    (folder / "interactions.tsv").write_text("\n".join(lines) + "\n")
    records = [json.dumps({"item_id": i.identifier, "attributes": dict(i.attributes)}) for i in dataset.items]
    (folder / "items.jsonl").write_text("\n".join(records) + "\n")
    return folder

"""Data sets, splits, item sentences, hard negatives and batches. Knows nothing of models."""

from dasearch.data.batches import (
    ItemRows,
    Row,
    RowFormat,
    Rows,
    SequenceBatch,
    evaluation_batches,
    example_batches,
    n_example_batches,
    n_training_batches,
    sequence_row,
    training_batches,
)
from dasearch.data.conversion import Converted, convert
from dasearch.data.dataset import Dataset, IntArray, Item
from dasearch.data.events import Core, Duplicates, Ties, sample_users
from dasearch.data.examples import Examples, select_examples
from dasearch.data.negatives import ContrastiveSample, HardNegatives, hard_negatives, mf_vectors, sample_contrastive
from dasearch.data.readers import DATASETS, READERS, load_dataset, read_complete_journey, read_folder, read_source
from dasearch.data.rules import Rules
from dasearch.data.sentences import ITEM_TOKENS, Sentences, item_sentence, tokenise_items
from dasearch.data.splits import Development, LeaveOneOut, TestSplit
from dasearch.data.statistics import Statistics, statistics

__all__ = [
    "DATASETS",
    "ITEM_TOKENS",
    "READERS",
    "ContrastiveSample",
    "Converted",
    "Core",
    "Dataset",
    "Development",
    "Duplicates",
    "Examples",
    "HardNegatives",
    "IntArray",
    "Item",
    "ItemRows",
    "LeaveOneOut",
    "Row",
    "RowFormat",
    "Rows",
    "Rules",
    "Sentences",
    "SequenceBatch",
    "Statistics",
    "TestSplit",
    "Ties",
    "convert",
    "evaluation_batches",
    "example_batches",
    "hard_negatives",
    "item_sentence",
    "load_dataset",
    "mf_vectors",
    "n_example_batches",
    "n_training_batches",
    "read_complete_journey",
    "read_folder",
    "read_source",
    "sample_contrastive",
    "sample_users",
    "select_examples",
    "sequence_row",
    "statistics",
    "tokenise_items",
    "training_batches",
]

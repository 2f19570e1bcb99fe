"""Data sets, splits, item sentences, hard negatives and batches; independent of models."""

from dasearch.data.batches import RowPlan, evaluation_plan, example_plan, training_plan
from dasearch.data.conversion import Converted, convert
from dasearch.data.dataset import Dataset, IntArray, Item
from dasearch.data.events import Core, Duplicates, Ties, sample_users
from dasearch.data.examples import Examples, select_examples
from dasearch.data.negatives import ContrastiveSample, HardNegatives, hard_negatives, mf_vectors, sample_contrastive
from dasearch.data.readers import DATASETS, READERS, load_dataset, read_complete_journey, read_folder, read_source
from dasearch.data.rows import ItemRows, RowFormat, Rows, RowTable, SequenceBatch
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
    "RowFormat",
    "RowPlan",
    "RowTable",
    "Rows",
    "Rules",
    "Sentences",
    "SequenceBatch",
    "Statistics",
    "TestSplit",
    "Ties",
    "convert",
    "evaluation_plan",
    "example_plan",
    "hard_negatives",
    "item_sentence",
    "load_dataset",
    "mf_vectors",
    "read_complete_journey",
    "read_folder",
    "read_source",
    "sample_contrastive",
    "sample_users",
    "select_examples",
    "statistics",
    "tokenise_items",
    "training_plan",
]

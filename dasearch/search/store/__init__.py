"""Persistence of studies in one database.

Optuna's `RDBStorage` owns trials, parameters and intermediate values; the tables of `tables`, prefixed ``dasearch_``, store what
Optuna does not. All SQL of the project is in this package; it returns typed rows; one state change is one transaction.
"""

from dasearch.search.store.connections import PATIENCE, Patience
from dasearch.search.store.engines import LOCK_SECONDS, database_url, shown
from dasearch.search.store.records import (
    AblationTraining,
    Artifact,
    Confirmation,
    FinalTraining,
    PostSearchTraining,
    PriorTrial,
    Progress,
    Result,
    Stored,
    TrialRecord,
)
from dasearch.search.store.storage import GRACE_SECONDS, HEARTBEAT_SECONDS, RETRY
from dasearch.search.store.store import DATABASE, Store, open_store, require_writable

__all__ = [
    "DATABASE",
    "GRACE_SECONDS",
    "HEARTBEAT_SECONDS",
    "LOCK_SECONDS",
    "PATIENCE",
    "RETRY",
    "AblationTraining",
    "Artifact",
    "Confirmation",
    "FinalTraining",
    "Patience",
    "PostSearchTraining",
    "PriorTrial",
    "Progress",
    "Result",
    "Store",
    "Stored",
    "TrialRecord",
    "database_url",
    "open_store",
    "require_writable",
    "shown",
]

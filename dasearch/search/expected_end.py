"""When a running study is estimated to end, recorded for those who read its database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from dasearch.errors import StoreError
from dasearch.search.events import Finished, Listener, Listeners
from dasearch.search.store import Store


class ExpectedEnd(Listener):
    """Records the estimates that other listeners are told."""

    def __init__(self, store: Store, study: str) -> None:
        self._store, self._study = store, study

    def left(self, seconds: float) -> None:
        """Record the end after these seconds."""
        self._store.expect_end(self._study, datetime.now(UTC) + timedelta(seconds=seconds))

    def finished(self, finished: Finished) -> None:
        """Record the end as estimated after a training."""
        self.left(finished.seconds_left)


@contextmanager
def end_expected(store: Store, name: str, listener: Listener) -> Iterator[Listener]:
    """The listener, and one that records the estimated end while the block runs."""
    store.expect_end(name, None)
    try:
        yield Listeners(listener, ExpectedEnd(store, name))
    finally:
        with suppress(StoreError):  # a database that is gone has no one to tell
            store.expect_end(name, None)

"""State changes over connections that may be lost: retried with backoff, each applied exactly once.

A server, or the network to it, may go down and return during a study. SQLite has no connection to lose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Engine, ExceptionContext, event, text
from sqlalchemy.exc import DatabaseError, OperationalError

from dasearch.errors import StoreError, first_line
from dasearch.search.store.engines import POSTGRESQL, reason

T = TypeVar("T")
TRANSACTION = "dasearch_transaction"  # of a committing connection: PostgreSQL's transaction id
IN_PROGRESS, COMMITTED = "in progress", "committed"  # of txid_status


class Lost(StoreError):
    """A connection that was lost.

    Attributes:
        transaction: id of the one whose commit was not answered; None if no commit was sent.
    """

    def __init__(self, sentence: str, transaction: int | None = None) -> None:
        super().__init__(sentence)
        self.transaction = transaction


class Patience(NamedTuple):
    """Exponential backoff for a database that does not answer, in seconds: each wait is twice the one before."""

    first: float = 0.25
    longest: float = 8.0
    whole: float = 60.0

    def waits(self) -> Iterator[float]:
        """Yield every wait; the last one is shortened to the limit."""
        wait, left = self.first, self.whole
        while left > 0:
            yield min(wait, left)
            wait, left = min(2 * wait, self.longest), left - wait


PATIENCE = Patience()
NO_PATIENCE = Patience(whole=0.0)  # of read-only use


class Right(Protocol):
    """A lock that a process needs for writing, which is lost with its connection."""

    @property
    def held(self) -> bool:
        """Whether the lock is held, as far as is known."""
        ...

    def renew(self) -> None:
        """Take the lock again if it was lost.

        Raises:
            Lost: if that is impossible for now.
        """
        ...


class Connections:
    """Detects lost connections of the engines over one database, and retries.

    Args:
        engine: queries the status of a transaction.
        name: of the database in messages.
    """

    def __init__(self, engine: Engine, name: str, patience: Patience) -> None:
        self._engine, self._name, self._patience = engine, name, patience
        self.right: Right | None = None
        self._given_up = False  # after the database was given up, until it answers: a single attempt

    def watch(self, engine: Engine) -> None:
        """Raise `Lost` for an engine's lost connections."""
        if engine.dialect.name == POSTGRESQL:
            event.listen(engine, "begin", _forget_transaction)
            event.listen(engine, "commit", _note_transaction)
            event.listen(engine, "handle_error", self._tell_lost)
            event.listen(engine, "connect", self._renew)

    def again(self, attempt: Callable[[], T], applied: Callable[[int], T]) -> T:
        """Attempt a state change until it is answered.

        Args:
            attempt: one transaction.
            applied: the result of an attempt that was committed without an answer, from its transaction id.

        Raises:
            Lost: if the database does not return in time.
        """
        lost: Lost | None = None
        for wait in (*(() if self._given_up else self._patience.waits()), None):
            try:
                result = self._attempt(attempt, applied, lost)
                self._given_up = False
                return result
            except Lost as error:
                lost = error
                if wait is None or self._given_up:  # by an attempt within this one
                    self._given_up = True
                    raise
                time.sleep(wait)
        raise AssertionError("the last wait is None")

    def _attempt(self, attempt: Callable[[], T], applied: Callable[[int], T], before: Lost | None) -> T:
        """One attempt, after the status of the previous one is known."""
        unanswered = None if before is None else before.transaction
        try:
            if self.right is not None and not self.right.held:
                self.right.renew()
            if unanswered is not None and self._committed(unanswered):
                return applied(unanswered)
        except Lost as error:
            raise Lost(str(error), unanswered) from error
        return attempt()

    def _committed(self, transaction: int) -> bool:
        """Whether a transaction was committed.

        Raises:
            Lost: if it is still in progress.
        """
        try:
            with self._engine.connect() as connection:
                status = connection.scalar(text("SELECT txid_status(:number)"), {"number": transaction})
        except DatabaseError:  # an id that the server, after a crash, has not reached
            return False
        if status == IN_PROGRESS:
            raise Lost(self._sentence("it is still processing an earlier change"))
        return bool(status == COMMITTED)

    def lost(self, error: Exception) -> Lost:
        """Turn the error of a lost connection into `Lost`."""
        return Lost(self._sentence(reason(error)))

    def _tell_lost(self, context: ExceptionContext) -> None:
        connection = context.connection
        refused = connection is None and isinstance(context.sqlalchemy_exception, OperationalError)
        if context.is_disconnect or refused:
            there = connection is not None and not connection.invalidated
            transaction = connection.info.pop(TRANSACTION, None) if connection is not None and there else None
            raise Lost(self._sentence(first_line(context.original_exception)), transaction)

    def _renew(self, *_: object) -> None:
        """Renew the lock before a new connection is used: it may replace a lost one, on which the lock depended."""
        if self.right is not None:
            self.right.renew()

    def _sentence(self, cause: str) -> str:
        fix = "when its server runs again, run the same command to resume"
        return f"{self._name} does not answer ({cause}); {fix}"


def _forget_transaction(connection: Connection) -> None:
    connection.info.pop(TRANSACTION, None)


def _note_transaction(connection: Connection) -> None:
    """Read the transaction id before the commit: afterwards the connection may be lost."""
    number = connection.exec_driver_sql("SELECT txid_current_if_assigned()").scalar()
    connection.info[TRANSACTION] = number

"""State changes that meet a lost connection: tried again with waits, and none applied twice.

A server may be stopped and started in the middle of a study, and so may the network to it. SQLite has no connection to lose.
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
TRANSACTION = "dasearch_transaction"  # of a connection that commits: what PostgreSQL calls its transaction
IN_PROGRESS, COMMITTED = "in progress", "committed"  # of txid_status


class Lost(StoreError):
    """A connection that was lost.

    Attributes:
        transaction: the one whose commit was not answered; None if nothing was to be committed yet.
    """

    def __init__(self, sentence: str, transaction: int | None = None) -> None:
        super().__init__(sentence)
        self.transaction = transaction


class Patience(NamedTuple):
    """How long to wait for a database that does not answer, in seconds: each wait twice the one before."""

    first: float = 0.25
    longest: float = 8.0
    whole: float = 60.0

    def waits(self) -> Iterator[float]:
        """Every wait, the last one cut short."""
        wait, left = self.first, self.whole
        while left > 0:
            yield min(wait, left)
            wait, left = min(2 * wait, self.longest), left - wait


PATIENCE = Patience()
NO_PATIENCE = Patience(whole=0.0)  # of who only looks


class Right(Protocol):
    """What a process must hold to write, which is lost with its connection."""

    @property
    def held(self) -> bool:
        """Whether it is, as far as is known."""
        ...

    def renew(self) -> None:
        """Hold it still, or again.

        Raises:
            Lost: if that cannot be for now.
        """
        ...


class Connections:
    """What the engines over one database have in common: how a lost connection is noticed and overcome.

    Args:
        engine: asks what became of a transaction.
        name: of the database in messages.
    """

    def __init__(self, engine: Engine, name: str, patience: Patience) -> None:
        self._engine, self._name, self._patience = engine, name, patience
        self.right: Right | None = None
        self._given_up = False  # since the database stayed away, until it answers: one attempt each

    def watch(self, engine: Engine) -> None:
        """Let an engine's lost connections be told as `Lost`."""
        if engine.dialect.name == POSTGRESQL:
            event.listen(engine, "begin", _forget_transaction)
            event.listen(engine, "commit", _note_transaction)
            event.listen(engine, "handle_error", self._tell_lost)
            event.listen(engine, "connect", self._renew)

    def again(self, attempt: Callable[[], T], applied: Callable[[int], T]) -> T:
        """Attempt a state change until it is answered.

        Args:
            applied: what the attempt would have given, of one whose transaction was committed without an answer.

        Raises:
            Lost: if the database stays away.
        """
        lost: Lost | None = None
        for wait in (*(() if self._given_up else self._patience.waits()), None):
            try:
                found = self._attempt(attempt, applied, lost)
                self._given_up = False
                return found
            except Lost as error:
                lost = error
                if wait is None or self._given_up:  # by an attempt within this one
                    self._given_up = True
                    raise
                time.sleep(wait)
        raise AssertionError("the last wait is None")

    def _attempt(self, attempt: Callable[[], T], applied: Callable[[int], T], before: Lost | None) -> T:
        """One attempt, after what became of the one before is known."""
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
        """Whether a transaction happened.

        Raises:
            Lost: if the server still works on it.
        """
        try:
            with self._engine.connect() as connection:
                status = connection.scalar(text("SELECT txid_status(:number)"), {"number": transaction})
        except DatabaseError:  # a number that the server, after a crash, has not come to
            return False
        if status == IN_PROGRESS:
            raise Lost(self._sentence("it is still at an earlier change"))
        return bool(status == COMMITTED)

    def lost(self, error: Exception) -> Lost:
        """What is told of a connection that was lost."""
        return Lost(self._sentence(reason(error)))

    def _tell_lost(self, context: ExceptionContext) -> None:
        connection = context.connection
        refused = connection is None and isinstance(context.sqlalchemy_exception, OperationalError)
        if context.is_disconnect or refused:
            there = connection is not None and not connection.invalidated
            transaction = connection.info.pop(TRANSACTION, None) if connection is not None and there else None
            raise Lost(self._sentence(first_line(context.original_exception)), transaction)

    def _renew(self, *_: object) -> None:
        """Before anything goes over a new connection: it may stand for one that was lost, and others with it."""
        if self.right is not None:
            self.right.renew()

    def _sentence(self, cause: str) -> str:
        fix = "when its server runs again, run the same command to go on where it stopped"
        return f"{self._name} does not answer ({cause}); {fix}"


def _forget_transaction(connection: Connection) -> None:
    connection.info.pop(TRANSACTION, None)


def _note_transaction(connection: Connection) -> None:
    """Ask for the number before the commit: afterwards there may be nobody to ask."""
    number = connection.exec_driver_sql("SELECT txid_current_if_assigned()").scalar()
    connection.info[TRANSACTION] = number

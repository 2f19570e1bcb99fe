"""Every error a user can meet. The message is one sentence that names the fix.

The command line exits with 2 on `WrongUse`, with 130 on `Interrupted` and with 1 on any other `DasearchError`.
"""

import difflib
import re
from collections.abc import Iterable

URL_WITH_PASSWORD = re.compile(r"(:/{1,2})\S*:\S*@")  # one slash: of a path that was made of a URL
QUERIED_PASSWORD = re.compile(r"(password=)[^&\s]*")

PARTS = re.compile(r"[^\W_]+")  # of an id, between its spaces and marks
DIGITS = re.compile(r"\d+")
WORD = re.compile(r"(?:[^\W\d_][^\W\d_A-Z]{2,19}|[^\W\d_a-z]{3,20})\d*")  # not Aq7Xz or qXzK
VOWEL = re.compile(r"[aeiouy]|[^\x00-\x7f]", re.IGNORECASE)  # other scripts have their own


class DasearchError(Exception):
    """Something failed that was not the user's doing."""


class WrongUse(DasearchError):
    """The input cannot be used as it is."""


class LayoutError(WrongUse):
    """A layout that cannot be read or does not fit its search space."""


class SearchSpaceError(WrongUse):
    """A search space file that is malformed, or another than the study began with."""


class StudyError(WrongUse):
    """A study file, or an override of it, that cannot be used."""


class DataError(WrongUse):
    """A data set that cannot be read or leaves nothing to train on."""


class BackboneError(WrongUse):
    """A language model that cannot be found, or whose family is not supported."""


class StoreError(WrongUse):
    """A study database that cannot be opened or written."""


class NoStudies(StoreError):
    """There is no study database yet where one was looked for."""


class ModelFolderError(WrongUse):
    """A trained model's folder that cannot be read, or a request it cannot answer."""


class ExportError(WrongUse):
    """A form that cannot express a trained model, or a place where it cannot be written."""


class BundleError(DasearchError):
    """What a study prepared cannot be opened: it is missing, damaged, or another study's."""


class ExchangeError(DasearchError):
    """Object storage between workers does not answer, or holds something damaged."""


class Interrupted(DasearchError):
    """The user stopped a command that cannot go on from where it stood; the message says what was done."""


class TestSplitError(DasearchError):
    """The test split was asked for a second time, or from outside the final evaluation."""

    __test__ = False  # its name begins with "Test"; pytest must not collect it


class TrainingError(DasearchError):
    """Training produced a loss or score that is not a finite number."""


class BrokenTraining(DasearchError):
    """A training that ended by an error, or whose worker was lost; ``memory``: there was too little of it."""

    def __init__(self, cause: str, *, memory: bool = False) -> None:
        super().__init__(cause)
        self.memory = memory


class RankError(DasearchError):
    """The processes of one training cannot go on together."""


def suggestion(name: str, known: list[str]) -> str:
    """``; did you mean X?`` where something known is near, else nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def suggestion_of_id(name: str, known: Iterable[str]) -> str:
    """As `suggestion`, for ids that data give: a word gets one, a number, hash or code does not.

    What is near an id that a machine made is another thing, no other spelling; so the digits of both must be the same.
    """
    if _is_opaque(name):
        return ""
    return suggestion(name, [other for other in known if DIGITS.findall(other) == DIGITS.findall(name)])


def _is_opaque(name: str) -> bool:
    """Without a word: 3 to 20 letters, one of them a vowel, no digit but at the end, no capital behind a small letter."""
    return not any(WORD.fullmatch(part) and VOWEL.search(part) for part in PARTS.findall(name))


def spelled(name: str, known: Iterable[str]) -> str:
    """A name as it is known, where nothing but its capitals differ; else as it is given."""
    every = list(known)
    return name if name in every else next((one for one in every if one.lower() == name.lower()), name)


def without_passwords(text: str) -> str:
    """A sentence whose URLs show none: of one that has a user's, nothing before its last @ is left."""
    return QUERIED_PASSWORD.sub(r"\1***", URL_WITH_PASSWORD.sub(r"\1***@", text))


def described(error: BaseException) -> str:
    """What kind of error it is and what it says, as a part of a sentence; one of ours says enough."""
    if isinstance(error, DasearchError):
        return str(error)
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"


def first_line(error: BaseException) -> str:
    """What another library's error says, as a part of a sentence; its kind where it says nothing."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error  # which puts what it says in quotes
    lines = str(said).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__

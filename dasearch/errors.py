"""All errors for users. Each message is one sentence that names the fix.

The command line exits with 2 on `WrongUse`, with 130 on `Interrupted` and with 1 on any other `DasearchError`.
"""

import difflib
import re
from collections.abc import Iterable

URL_WITH_PASSWORD = re.compile(r"(:/{1,2})\S*:\S*@")  # one slash: in a path made from a URL
QUERIED_PASSWORD = re.compile(r"(password=)[^&\s]*")

PARTS = re.compile(r"[^\W_]+")  # parts of an id between spaces and punctuation
DIGITS = re.compile(r"\d+")
WORD = re.compile(r"(?:[^\W\d_][^\W\d_A-Z]{2,19}|[^\W\d_a-z]{3,20})\d*")  # not Aq7Xz or qXzK
VOWEL = re.compile(r"[aeiouy]|[^\x00-\x7f]", re.IGNORECASE)  # other scripts have their own vowels


class DasearchError(Exception):
    """A failure that the user did not cause."""


class WrongUse(DasearchError):
    """The input is not usable."""


class LayoutError(WrongUse):
    """A layout that cannot be read or does not fit its search space."""


class SearchSpaceError(WrongUse):
    """A search space file that is malformed, or differs from the study's."""


class StudyError(WrongUse):
    """A study file, or an override of it, that cannot be used."""


class DataError(WrongUse):
    """A data set that cannot be read or leaves nothing to train on."""


class BackboneError(WrongUse):
    """A language model that cannot be found, or whose family is not supported."""


class StoreError(WrongUse):
    """A study database that cannot be opened or written."""


class NoStudies(StoreError):
    """There is no study database yet at the given location."""


class ModelFolderError(WrongUse):
    """A trained model's folder that cannot be read, or a request it cannot answer."""


class ExportError(WrongUse):
    """An export format that cannot express a trained model, or an output folder that cannot be written."""


class BundleError(DasearchError):
    """A prepared study cannot be opened: it is missing, damaged, or belongs to another study."""


class ExchangeError(DasearchError):
    """The object store between workers does not answer, or an object is damaged."""


class Interrupted(DasearchError):
    """The user stopped a command; the message says what was done, or how to resume."""


class TestSplitError(DasearchError):
    """The test split was read twice, or outside the final evaluation."""

    __test__ = False  # its name begins with "Test"; pytest must not collect it


class TrainingError(DasearchError):
    """Training produced a loss or score that is not a finite number."""


class BrokenTraining(DasearchError):
    """A training that ended with an error, or whose worker was lost; ``memory``: it ran out of memory."""

    def __init__(self, cause: str, *, memory: bool = False) -> None:
        super().__init__(cause)
        self.memory = memory


class RankError(DasearchError):
    """The processes of one distributed training cannot continue together."""


def suggestion(name: str, known: list[str]) -> str:
    """``; did you mean X?`` where a known name is similar, else an empty text."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def suggestion_of_id(name: str, known: Iterable[str]) -> str:
    """As `suggestion`, for ids from data: words get a suggestion, numbers, hashes and codes do not.

    A similar generated id is another object rather than a misspelling, so the digits of both must be equal.
    """
    if _is_opaque(name):
        return ""
    return suggestion(name, [other for other in known if DIGITS.findall(other) == DIGITS.findall(name)])


def _is_opaque(name: str) -> bool:
    """Whether an id contains no word: 3 to 20 letters with a vowel, digits only at the end, no capital after a small letter."""
    return not any(WORD.fullmatch(part) and VOWEL.search(part) for part in PARTS.findall(name))


def spelled(name: str, known: Iterable[str]) -> str:
    """The known spelling of a name that differs only in case; else the name unchanged."""
    every = list(known)
    return name if name in every else next((one for one in every if one.lower() == name.lower()), name)


def without_passwords(text: str) -> str:
    """A sentence without passwords: in a URL with a user, everything before the last @ is removed."""
    return QUERIED_PASSWORD.sub(r"\1***", URL_WITH_PASSWORD.sub(r"\1***@", text))


def described(error: BaseException) -> str:
    """An error's class and message, as a part of a sentence; only the message of our own errors."""
    if isinstance(error, DasearchError):
        return str(error)
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"


def first_line(error: BaseException) -> str:
    """The message of another library's error, as a part of a sentence; its class where it is empty."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error  # which quotes its message
    lines = str(said).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__

"""Object storage between a driver and workers that share no disk: prepared studies one way, checkpoints both ways.

Any URI that pyarrow opens: ``s3://``, ``gs://``, ``file://``. Each machine has its own credentials, from its environment or
its role; they are never part of the URI. An object is written atomically and ends with the sha256 of its content, which is
verified at reading.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from dasearch.errors import ExchangeError, WrongUse, first_line, without_passwords
from dasearch.folders import READ, whole_file

T = TypeVar("T")
SCHEMES = ("s3", "gs", "file")
PAUSES = (0.5, 2.0, 8.0)  # seconds before each retry
WHOLE = "allow_delayed_open=true"  # of S3: a small object is one request, which is atomic
DIGEST = 32  # bytes of the sha256 at an object's end


def require_exchange(uri: str) -> None:
    """Reject a URI that `Exchange` cannot open, without network access.

    Raises:
        WrongUse: for another scheme, credentials in it, or without pyarrow.
    """
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.path.strip("/")):
        raise WrongUse("--exchange reads s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///FOLDER; name one of them")
    if "@" in parts.netloc or "secret" in parts.query.lower():
        raise WrongUse(
            "--exchange takes no credentials; set them in the environment of every machine, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    try:
        import pyarrow.fs  # noqa: F401 (whether it is installed)
    except ModuleNotFoundError:
        raise WrongUse('--exchange needs pyarrow, which is not installed; pip install "dasearch[cloud]"') from None


class Exchange:
    """A prefix of an object store.

    Args:
        uri: as in `require_exchange`; the file system's options may follow, as in ``?region=eu-central-1``.
        study: its name, under which its objects are stored.
    """

    def __init__(self, uri: str, study: str) -> None:
        parts = urlsplit(uri)
        self._uri, self._study = uri, study
        self._shown = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
        self._opened: tuple[Any, str] | None = None

    def put(self, name: str, path: Path) -> None:
        """Upload a file, atomically.

        Raises:
            ExchangeError: if the store does not answer.
        """
        self._again(lambda: self._write(name, path))

    def get(self, name: str, path: Path) -> bool:
        """Download an object to a file, atomically; False where there is none.

        Raises:
            ExchangeError: if it is damaged, or the store does not answer.
        """
        try:
            self._again(lambda: self._read(name, path))
        except FileNotFoundError:
            return False
        return True

    def put_folder(self, name: str, folder: Path) -> None:
        """Upload a folder as one object; errors as in `put`."""
        with tempfile.TemporaryDirectory() as beside:
            packed = Path(beside) / "packed.tar"
            with tarfile.open(packed, "w") as archive:
                archive.add(folder, arcname=".")
            self.put(name, packed)

    def get_folder(self, name: str, folder: Path) -> bool:
        """Download a folder uploaded by `put_folder`; errors as in `get`."""
        with tempfile.TemporaryDirectory() as beside:
            packed = Path(beside) / "packed.tar"
            if not self.get(name, packed):
                return False
            with tarfile.open(packed) as archive:
                archive.extractall(folder, filter="data")
        return True

    def forget(self, name: str) -> None:
        """Remove an object, if it exists; errors as in `put`."""
        filesystem, place = self._place()
        with suppress(FileNotFoundError):
            self._again(lambda: filesystem.delete_file(f"{place}/{name}"))

    def clear(self, folder: str) -> None:
        """Remove all objects whose names begin with ``folder/``; errors as in `put`."""
        filesystem, place = self._place()
        with suppress(FileNotFoundError):
            self._again(lambda: filesystem.delete_dir(f"{place}/{folder}"))

    def _place(self) -> tuple[Any, str]:
        """The pyarrow file system, and the prefix in it; opening one may look up a bucket's region."""
        if self._opened is None:
            self._opened = self._again(self._open)
        return self._opened

    def _open(self) -> tuple[Any, str]:
        from pyarrow import ArrowInvalid, fs

        try:
            filesystem, place = fs.FileSystem.from_uri(_with_option(self._uri))
        except ArrowInvalid as error:
            raise WrongUse(f"--exchange {self._shown} cannot be opened ({self._said(error)}); correct it") from None
        return filesystem, f"{place.rstrip('/')}/{self._study}"

    def _write(self, name: str, path: Path) -> None:
        digest = hashlib.sha256()
        with path.open("rb") as content, self._whole(name) as stream:
            while part := content.read(READ):
                digest.update(part)
                stream.write(part)
            stream.write(digest.digest())

    @contextmanager
    def _whole(self, name: str) -> Iterator[Any]:
        """Write atomically: as object stores do by themselves, and a local folder by renaming."""
        filesystem, place = self._place()
        final = f"{place}/{name}"
        if filesystem.type_name != "local":
            with filesystem.open_output_stream(final) as stream:
                yield stream
            return
        filesystem.create_dir(final.rpartition("/")[0])
        beside = f"{final}.unfinished-{uuid4().hex[:8]}"
        try:
            with filesystem.open_output_stream(beside) as stream:
                yield stream
            filesystem.move(beside, final)
        except BaseException:
            with suppress(OSError):
                filesystem.delete_file(beside)
            raise

    def _read(self, name: str, path: Path) -> None:
        filesystem, place = self._place()
        digest = hashlib.sha256()
        with (
            whole_file(path) as unfinished,
            filesystem.open_input_file(f"{place}/{name}") as stream,
            unfinished.open("wb") as content,
        ):
            left = stream.size() - DIGEST
            while left > 0 and (part := stream.read(min(READ, left))):
                left -= len(part)
                digest.update(part)
                content.write(part)
            if stream.read(DIGEST) != digest.digest():
                raise ExchangeError(
                    f"{self._shown}/{self._study}/{name} is damaged; delete it and run the same command again"
                )

    def _again(self, work: Callable[[], T]) -> T:
        """Retry a few times; a missing or damaged object is an answer and is not retried."""
        for pause in (*PAUSES, None):
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                if pause is None:
                    raise ExchangeError(
                        f"{self._shown} does not answer ({self._said(error)}); check the address, the network and this "
                        "machine's credentials, and run the same command again"
                    ) from None
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _said(self, error: Exception) -> str:
        return without_passwords(first_line(error)).rstrip(".")


def _with_option(uri: str) -> str:
    if not uri.startswith("s3:"):
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{WHOLE}"

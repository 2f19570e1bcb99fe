"""A study by the name that a command gives it: a file, or one that a database keeps, with the settings that it has there.

A path, or a file that is there, is what it says. Of a bare name the stored study is meant, and only where there is none the
shipped file; with ``name=NEW`` a shipped file begins another study whatever is stored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from dasearch.commands import OUTPUT
from dasearch.config import (
    Override,
    StudySettings,
    last_given,
    load_study,
    overridden,
    parse_data,
    parse_study,
    value_at,
)
from dasearch.data import DATASETS, Dataset, Rules, load_dataset
from dasearch.errors import NoStudies, StudyError, spelled, suggestion
from dasearch.search.store import open_store, shown
from dasearch.search.study import Study, settings_differences
from dasearch.shipped import find_shipped, shipped_names

SAID_DIFFERENCES = 6  # of a recalled study's settings and its file's; more would not be read


class Named(NamedTuple):
    """A study that was asked for by name.

    Attributes:
        recalled: of a stored one, a sentence that says so.
    """

    study: Study
    recalled: str | None = None


class Kept(NamedTuple):
    """What a database has under a name.

    Attributes:
        database: as messages may show it; None where there is none.
        settings: None where it has no such study.
        names: of the studies that it has.
    """

    database: str | None = None
    settings: StudySettings | None = None
    names: Sequence[str] = ()


def named_study(
    name: str, overrides: Iterable[str | Override] = (), *, output: str | None = None, storage: str | None = None
) -> Named:
    """The study of a file, a database or a shipped file, with ``key=value`` overrides.

    Args:
        output: the studies' output folder, over the study's own; a stored study is looked for there.
        storage: as of `open_store`.

    Raises:
        StudyError: if there is no such study, or its settings cannot be used.
        StoreError: if the database cannot be read.
    """
    given = [Override.of(override) for override in overrides]
    if output is not None:
        given.append(Override.option("--output", "output", output))
    if _is_path(name):
        return Named(Study.load(name, given, storage=storage))
    file = load_study(name) if find_shipped(name, "studies") else None
    if file is not None and last_given(given, "name") is not None:
        return Named(Study.load(name, given, storage=storage))
    folder = str(last_given(given, "output") or (file.output if file else OUTPUT))
    name = file.name if file else name
    kept = _kept(name, folder, storage)
    if kept.settings is not None:
        here = kept.settings if storage is not None else _moved(kept.settings, folder)
        settings = overridden(here.model_dump(mode="json"), given, source=f"study {name}")
        return Named(Study(settings, storage=storage), _recalled(kept, file, given))
    if file is None:
        raise _unknown(name, folder, kept)
    return Named(Study.load(name, given, storage=storage))


def _is_path(name: str) -> bool:
    return Path(name).name != name or Path(name).suffix in (".yaml", ".yml") or Path(name).is_file()


def _kept(name: str, folder: str, storage: str | None) -> Kept:
    try:
        store = open_store(storage, folder, create=False)
    except NoStudies:
        return Kept()
    with closing(store):
        stored, names = store.study(name), store.study_names()
    settings = None if stored is None else parse_study(stored.settings, source=f"study {name}")
    return Kept(shown(store.url), settings, names)


def _moved(settings: StudySettings, folder: str) -> StudySettings:
    """A study that goes on in the folder where it was found, which may have been moved since."""
    if Path(settings.output).expanduser().resolve() == Path(folder).expanduser().resolve():
        return settings
    return settings.model_copy(update={"output": folder})


def _recalled(kept: Kept, file: StudySettings | None, given: Iterable[Override]) -> str | None:
    """Whose settings are taken, and which of them a file of the same name has otherwise; None where it has them all."""
    assert kept.settings is not None
    name, own = kept.settings.name, kept.settings.model_dump(mode="json")
    where = f"study {name} with its own settings of {kept.database}"
    if file is None:
        return where
    changed = {"output", *(override.key for override in given)}
    keys = [key for key in settings_differences(file.model_dump(mode="json"), own) if key not in changed]
    if not keys:
        return None
    more = len(keys) - SAID_DIFFERENCES
    said = [f"{key}={_written(value_at(own, key))}" for key in keys[:SAID_DIFFERENCES]]
    also = f" and {more} more" if more > 0 else ""
    return f"{where}, other than its file's: {' '.join(said)}{also}; for the file's, --set name=NEW"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _unknown(name: str, folder: str, kept: Kept) -> StudyError:
    files = shipped_names("studies")
    place = f"{kept.database} has none of that name" if kept.database else f"no studies are under {folder} yet"
    return StudyError(
        f"there is no study {name!r}{suggestion(name, [*kept.names, *files])}; {place}; give a YAML file, a stored study "
        f"(--output and --storage say where), or one of {', '.join(files)}"
    )


def named_dataset(source: str, changes: Iterable[str | Override] = (), **place: str | None) -> Dataset:
    """A data set by its name, folder or file, or the study that uses it.

    Args:
        changes: ``data.KEY=VALUE``.
        place: ``output`` and ``storage``, as of `named_study`.
    """
    return load_dataset(*named_source(source, changes, **place))


def named_source(source: str, changes: Iterable[str | Override] = (), **place: str | None) -> tuple[str, Rules]:
    """Where the same stands, and the rules it is read by."""
    if not Path(source).exists():
        source = spelled(source, DATASETS)
    if source in DATASETS or not _is_study(source, **place):
        return source, parse_data(source, changes).rules(seed=0)
    study = named_study(source, changes, **place).study
    return study.settings.data.source, study.rules()


def _is_study(source: str, output: str | None = None, storage: str | None = None) -> bool:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        return True
    if os.path.exists(path):
        return False
    if find_shipped(source, "studies") is not None:
        return True
    return not _is_path(source) and _kept(source, output or OUTPUT, storage).settings is not None

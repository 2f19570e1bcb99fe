"""Resolves a study's name on the command line to a file, or to a stored study with its stored settings.

A path, or the name of an existing file, is that file. A bare name is the stored study, or the shipped file where no study of
that name is stored; with ``name=NEW`` a shipped file begins another study in any case.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from dasearch.commands import OUTPUT, command
from dasearch.config import (
    KNOWN_NAMES,
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
from dasearch.errors import NoStudies, StoreError, StudyError, spelled, suggestion
from dasearch.search.events import DONE
from dasearch.search.store import open_store, shown
from dasearch.search.study import STARTED_IN, Study, settings_differences
from dasearch.shipped import find_shipped, is_path, is_yaml, shipped_names

PATHS = (
    "data.source",
    "data.items",
    "encoder.file",
    "backbone.name",
    "space.name",
)  # settings that may be relative paths
SAID_DIFFERENCES = 6  # differences shown between a recalled study's settings and its file's


class Named(NamedTuple):
    """A study resolved from its name.

    Attributes:
        recalled: for a stored study, a sentence on where its settings come from.
    """

    study: Study
    recalled: str | None = None


class Kept(NamedTuple):
    """The content of a database for a name.

    Attributes:
        database: as shown in messages; None where there is none.
        settings: of the study; None where there is no such study.
        names: of all studies in it.
        started_in: the folder in which the study was started; None for studies of earlier versions.
    """

    database: str | None = None
    settings: StudySettings | None = None
    names: Sequence[str] = ()
    started_in: str | None = None


def named_study(
    name: str, overrides: Iterable[str | Override] = (), *, output: str | None = None, storage: str | None = None
) -> Named:
    """The study of a file, a database or a shipped file, with ``key=value`` overrides.

    Args:
        name: a path, a stored study's name or a shipped name.
        overrides: ``key=value``.
        output: the studies' output folder, which replaces the study's own; stored studies are located there.
        storage: as in `open_store`.

    Raises:
        StudyError: if there is no such study, or its settings cannot be used.
        StoreError: if the database cannot be read.
    """
    given = _given(overrides, output)
    if is_path(name):
        return Named(Study.load(name, given, storage=storage))
    file = load_study(name) if find_shipped(name, "studies") else None
    if file is not None and last_given(given, "name") is not None:
        return Named(Study.load(name, given, storage=storage))
    folder = str(last_given(given, "output") or (file.output if file else OUTPUT))
    name = file.name if file else name
    kept = _kept(name, folder, storage)
    if kept.settings is not None:
        return Named(_stored(kept, given, folder, storage), _recalled(kept, file, given))
    if file is None:
        raise _unknown(name, folder, kept)
    return Named(Study.load(name, given, storage=storage))


def resumed_study(
    name: str | None, overrides: Iterable[str | Override] = (), *, output: str | None = None, storage: str | None = None
) -> Named:
    """A stored study with its own settings, to go on with.

    Args:
        name: of a stored study; None: the only unfinished one.
        overrides: as of `named_study`, as are the output folder and the database.
        output: the studies' output folder.
        storage: the database.

    Raises:
        StudyError: if there is no such study, or the overrides name another one.
        StoreError: if the database cannot be read.
    """
    given = _given(overrides, output)
    if last_given(given, "name") is not None:
        raise StudyError(
            "a study that is resumed keeps its name; begin another one with `dasearch run STUDY --set name=NEW`"
        )
    folder = str(last_given(given, "output") or OUTPUT)
    if name is None:
        name = _only_unfinished(folder, storage)
    kept = _kept(name, folder, storage)
    if kept.settings is None:
        raise _not_begun(name, folder, kept)
    return Named(_stored(kept, given, folder, storage), _recalled(kept, None, given))


def resumable(study: Study) -> bool:
    """Whether a study is stored; False also where its database does not answer."""
    try:
        return _kept(study.settings.name, study.settings.output, study.storage).settings is not None
    except StoreError:
        return False


def _given(overrides: Iterable[str | Override], output: str | None) -> list[Override]:
    own = [] if output is None else [Override.option("--output", "output", output)]
    return [*(Override.of(override) for override in overrides), *own]


def _stored(kept: Kept, given: Iterable[Override], folder: str, storage: str | None) -> Study:
    """A stored study with overrides of its settings."""
    assert kept.settings is not None
    here = kept.settings if storage is not None else _moved(kept.settings, folder)
    settings = overridden(here.model_dump(mode="json"), given, source=f"study {here.name}")
    _require_files(settings, kept.started_in)
    return Study(settings, storage=storage)


def _only_unfinished(folder: str, storage: str | None) -> str:
    with closing(open_store(storage, folder, create=False)) as store:
        names = store.study_names()
        unfinished = [name for name in names if store.begun(name).phase != DONE]
        database = shown(store.url)
    if len(unfinished) == 1:
        return unfinished[0]
    if unfinished:
        example = command("resume", unfinished[-1])
        raise StudyError(
            f"{database} has {len(unfinished)} unfinished studies: {', '.join(unfinished)}; name one, as in `{example}`"
        )
    said = f"every study of {database} is done: {', '.join(names)}" if names else f"{database} has no study"
    raise StudyError(f"{said}; begin another one with `dasearch run STUDY --set name=NEW`")


def _kept(name: str, folder: str, storage: str | None) -> Kept:
    try:
        store = open_store(storage, folder, create=False)
    except NoStudies:
        return Kept()
    with closing(store):
        stored, names = store.study(name), store.study_names()
    if stored is None:
        return Kept(shown(store.url), names=names)
    settings = parse_study(stored.settings, source=f"study {name}")
    return Kept(shown(store.url), settings, names, stored.dataset.get(STARTED_IN))


def _moved(settings: StudySettings, folder: str) -> StudySettings:
    """A study that resumes in the folder where it is located, which may have been moved since."""
    if Path(settings.output).expanduser().resolve() == Path(folder).expanduser().resolve():
        return settings
    return settings.model_copy(update={"output": folder})


def _require_files(settings: StudySettings, started_in: str | None) -> None:
    """Reject a recalled study whose relative paths exist where it was started, but not here."""
    record = settings.model_dump(mode="json")
    for key in PATHS if started_in else ():
        path = value_at(record, key)
        if not path or path in KNOWN_NAMES.get(key, ()) or os.path.exists(os.path.expanduser(path)):
            continue
        if os.path.exists(os.path.join(str(started_in), path)):
            raise StudyError(
                f"there is no {path} here: study {settings.name} was started in {started_in}, which has its {key}; run the "
                "command there"
            )


def _recalled(kept: Kept, file: StudySettings | None, given: Iterable[Override]) -> str | None:
    """A sentence on which settings of a stored study differ from the file of its name; None where none do."""
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
    return f"{where}, which differ from its file's: {' '.join(said)}{also}; for the file's, --set name=NEW"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _not_begun(name: str, folder: str, kept: Kept) -> StudyError:
    study = name if find_shipped(name, "studies") else "STUDY"
    return StudyError(
        f"there is no study {name!r} to resume{suggestion(name, [*kept.names])}; {_place(folder, kept)}; "
        f"`{command('run', study)}` begins one, --output and --storage say where it is stored"
    )


def _place(folder: str, kept: Kept) -> str:
    return f"{kept.database} has none of that name" if kept.database else f"no studies are under {folder} yet"


def _unknown(name: str, folder: str, kept: Kept) -> StudyError:
    files = shipped_names("studies")
    return StudyError(
        f"there is no study {name!r}{suggestion(name, [*kept.names, *files])}; {_place(folder, kept)}; give a YAML file, "
        f"a stored study (--output and --storage say where), or one of {', '.join(files)}"
    )


def named_dataset(source: str, changes: Iterable[str | Override] = (), **place: str | None) -> Dataset:
    """A data set by its name, folder or file, or the study that uses it.

    Args:
        source: name, folder or file of the data, or a study.
        changes: ``data.KEY=VALUE``.
        place: ``output`` and ``storage``, as in `named_study`.
    """
    return load_dataset(*named_source(source, changes, **place))


def named_source(source: str, changes: Iterable[str | Override] = (), **place: str | None) -> tuple[str, Rules]:
    """The source of the same data, and the rules for reading it."""
    if not Path(source).exists():
        source = spelled(source, DATASETS)
    if source in DATASETS or not _is_study(source, **place):
        return source, parse_data(source, changes).rules(seed=0)
    study = named_study(source, changes, **place).study
    return study.settings.data.source, study.rules()


def _is_study(source: str, output: str | None = None, storage: str | None = None) -> bool:
    if is_yaml(source):
        return True
    if os.path.exists(source):
        return False
    if find_shipped(source, "studies") is not None:
        return True
    return not is_path(source) and _kept(source, output or OUTPUT, storage).settings is not None

"""Reference pages made of what the code says of itself: settings of the pydantic models, commands of Typer, public Python.

A hook of MkDocs: ``on_files`` adds the pages to a build. Each page is a function that returns Markdown.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from importlib import import_module
from inspect import cleandoc
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from dasearch.cli import app
from dasearch.config import STUDIES, StudySettings
from dasearch.data import DATASETS, READERS
from dasearch.export import FORMATS
from dasearch.layout import CHOICES
from dasearch.models.id_encoders import ENCODERS
from dasearch.search_space import ChoiceFile, SearchSpaceFile

if TYPE_CHECKING:  # what tests check needs no MkDocs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

WORDS = {str: "text", int: "whole number", float: "number", bool: "true, false", NoneType: "null"}
OF_ONE_MODEL = ("model", "losses", "cf")  # sections that differ from model to model
BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


class Setting(NamedTuple):
    """One key of a file: its dotted name, what values it takes, where it starts, what it does."""

    key: str
    values: str
    default: str
    description: str


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to a build."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[str, str]:
    """The Markdown of every generated page by its path in the site."""
    return {
        "reference/settings.md": settings_page(),
        "reference/commands.md": commands_page(),
        "reference/names.md": names_page(),
        "reference/python.md": package_page(
            "dasearch", "Python", "What `import dasearch` offers. Names are imported on first use."
        ),
        "reference/bayes.md": package_page(
            "dasearch.bayes",
            "dasearch.bayes",
            "The sampler and its parts. This package knows nothing of recommenders and works in any Optuna study.",
        ),
        "reference/models.md": models_page(),
    }


def settings_page() -> str:
    """Every setting of every study, and of search space files."""
    parts = [
        "# Settings\n\nGenerated from the models in `dasearch/config.py`. A study file is YAML with these keys; "
        "`--set key=value` changes one on the command line, and `dasearch run --dry-run` prints what a study resolves to. "
        "An unknown key is refused, with the nearest known one.",
        "## A study\n\n" + _table([one for one in settings_of(StudySettings) if "." not in one.key]),
    ]
    for section in _sections():
        parts.append(f"## {section}\n\n" + _section(section))
    parts.append(
        "## Search space files\n\n`search_spaces/NAME.yaml`, or a file of your own with `--set space.name=FILE.yaml`. A choice "
        "under `define` has the keys of the second table.\n\n"
        + "\n\n".join(_table(list(settings_of(model))) for model in (SearchSpaceFile, ChoiceFile))
    )
    return "\n\n".join(parts) + "\n"


def _sections() -> list[str]:
    """The sections of a study in the order of the file, each once."""
    found: dict[str, None] = {}
    for study in STUDIES.values():
        for name, field in study.model_fields.items():
            if _models(field.annotation) and name not in found:
                found[name] = None
    return list(found)


def _section(name: str) -> str:
    """The table of a section, or one a model where models differ in it."""
    if name not in OF_ONE_MODEL:
        return _table(_under(StudySettings, name))
    parts = []
    for kind, study in STUDIES.items():
        found = _under(study, name)
        if found:
            parts.append(f"### {name}: {kind}\n\n" + _table(found))
    return "\n\n".join(parts)


def _under(study: type[StudySettings], section: str) -> list[Setting]:
    return [one for one in settings_of(study) if one.key.startswith(f"{section}.")]


def settings_of(model: type[BaseModel], prefix: str = "", given: BaseModel | None = None) -> Iterator[Setting]:
    """Every setting below a model, sections entered; ``given`` holds the section's own defaults."""
    for name, field in model.model_fields.items():
        key, default = prefix + name, _default(name, field, given)
        inner = _models(field.annotation)
        if isinstance(default, BaseModel) or (inner and field.is_required() and not prefix):
            section = type(default) if isinstance(default, BaseModel) else inner[0]
            yield from settings_of(section, f"{key}.", default if isinstance(default, BaseModel) else None)
        else:
            yield Setting(key, values_of(field), default_text(default, field), field.description or "")


def _default(name: str, field: FieldInfo, given: BaseModel | None) -> Any:
    if given is not None:
        return getattr(given, name)
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections among the types of a field; not those inside containers."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [one for one in members if isinstance(one, type) and issubclass(one, BaseModel)]


def values_of(field: FieldInfo) -> str:
    """The values that a field takes, with its bounds."""
    bounds = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in BOUNDS
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([_type_text(field.annotation), *bounds])


def _type_text(annotation: Any) -> str:
    """A type in words: the values of an enumeration, ``text``, ``list of ...``."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(members[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type_text(one) for one in members))
    if origin is Literal:
        return ", ".join(f"`{one.value if isinstance(one, Enum) else one}`" for one in members)
    if origin is tuple and Ellipsis not in members:
        return f"[{', '.join(_type_text(one) for one in members)}]"
    if origin in (list, tuple):
        return f"list of {_type_text(members[0])}"
    if origin is dict:
        return f"mapping of {_type_text(members[0])} to {_type_text(members[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return WORDS[annotation]


def default_text(value: Any, field: FieldInfo | None = None) -> str:
    """A default as YAML has it; ``required`` where there is none."""
    if field is not None and field.is_required() and value is None:
        return "required"
    plain = _plain(value)
    written = yaml.safe_dump(plain, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
    return f"`{written}`"


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _table(found: Sequence[Setting]) -> str:
    rows = [(f"`{one.key}`", one.values, one.default, one.description) for one in found]
    return table(("setting", "values", "default", "what it does"), rows)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def commands_page() -> str:
    """Every command with its arguments and options."""
    parts = [
        "# Commands\n\nGenerated from the command line itself; `dasearch COMMAND --help` prints the same. Exit codes: 0 done, "
        "1 failed, 2 wrong use, 130 interrupted. Errors are one sentence on standard error; `DASEARCH_DEBUG=1` shows where "
        "an unexpected one came from."
    ]
    for path, command in commands():
        arguments = " ".join(_metavar(one) for one in command.params if one.param_type_name == "argument")
        usage = f"dasearch {path} {arguments} [OPTIONS]".replace("  ", " ")
        described = cleandoc(command.help or "")
        context = command.make_context(path, [], resilient_parsing=True)
        rows = [_parameter_row(one, context) for one in command.params if one.name != "help"]
        shown = table(("", "values", "default", "what it does"), rows) if rows else ""
        parts.append(f"## dasearch {path}\n\n```text\n{usage}\n```\n\n{described}\n\n{shown}".rstrip())
    return "\n\n".join(parts) + "\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by what is typed after ``dasearch``, groups entered."""
    yield from _below(get_command(app), "")


def _below(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _below(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _parameter_row(parameter: Any, context: Any) -> tuple[str, str, str, str]:
    flag = getattr(parameter, "is_flag", False)
    if parameter.param_type_name == "argument":
        names, values = f"`{_metavar(parameter)}`", "text"
    else:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        values = "" if flag else parameter.display_type_rich(context) or ""
    default = parameter.default
    shown = "" if flag or default is None or callable(default) else f"`{_plain(default)}`"
    return names, values, "required" if parameter.required else shown, parameter.help or ""


def names_page() -> str:
    """What can be named: choices, encoders, forms of data, export formats."""
    choices = [
        (f"`{one.name}`", one.letter, "yes" if one.parallel else "no", "yes" if one.lora else "no")
        for one in CHOICES.values()
    ]
    readers = [(f"`{name}`", reader.FILES, reader.ORIGIN) for name, reader in READERS.items()]
    encoders = [(f"`{name}`", one.title) for name, one in ENCODERS.items()]
    formats = [(f"`{name}`", one.title, f"`{one.opened}`") for name, one in FORMATS.items()]
    sets = ", ".join(f"`{name}`" for name in DATASETS)
    return "\n\n".join(
        [
            "# Names\n\nGenerated from the registries of the code: what may stand where a setting or an option takes a name.",
            "## Choices of a site\n\n`choices` of a search space.\n\n"
            + table(("choice", "letter", "beside its sublayer", "LoRA"), choices),
            f"## Data\n\n`data.format`; data sets by name: {sets}.\n\n" + table(("form", "files", "from"), readers),
            "## ID encoders\n\n`encoder.name`, `comparison.encoders`.\n\n" + table(("name", "model"), encoders),
            "## Export formats\n\n`dasearch export --format`.\n\n" + table(("format", "what", "opened with"), formats),
        ]
    )


def package_page(package: str, title: str, about: str) -> str:
    """Every public name of a package by its docstring."""
    names = [name for name in import_module(package).__all__ if not name.startswith("_")]
    return f"# {title}\n\n{about}\n\n" + "\n\n".join(f"::: {package}.{name}" for name in names) + "\n"


def models_page() -> str:
    """Every module of the models that has public classes or functions."""
    package = import_module("dasearch.models")
    found = [one.name for one in pkgutil.walk_packages(package.__path__, "dasearch.models.") if not one.ispkg]
    return (
        f"# dasearch.models\n\n{cleandoc(package.__doc__ or '')}\n\n"
        + "\n\n".join(f"::: {name}" for name in found)
        + "\n"
    )

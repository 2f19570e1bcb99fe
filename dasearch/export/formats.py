"""The export formats by name; each is written atomically."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dasearch.config import Pick
from dasearch.errors import ExportError, suggestion
from dasearch.export.adapterhub import write_adapters
from dasearch.export.graph import write_onnx, write_pt2
from dasearch.export.huggingface import write_hf
from dasearch.export.layout import write_layout, write_picked_layout, write_study_trials
from dasearch.export.options import ExportOptions
from dasearch.export.pick import Picked, picked_of, require_trained
from dasearch.export.pytorch import write_torch
from dasearch.export.snippet import untrained_snippet, write_snippet
from dasearch.export.source import open_trained
from dasearch.folders import require_free, whole_folder
from dasearch.search.store import Store, open_store
from dasearch.training.recommender import Recommender

Write = Callable[[Recommender, Path, ExportOptions], None]


@dataclass(frozen=True)
class WriteStudy:
    """Writes a study by its name in the store; needs no trained model."""

    write: Callable[[Store, str, Path], None]


class Format(NamedTuple):
    """One export format.

    Attributes:
        title: one line for listings.
        write: fills an empty folder from a trained model, or, as a `WriteStudy`, from a stored study.
        opened: command that opens the folder ``{out}``, which is inserted shell-quoted.
        supported_options: names of the `ExportOptions` that it supports.
        text: the text to print where no folder is named; None: a folder is always written.
        write_untrained: fills an empty folder from a confirmed layout without weights, where the format needs none.
    """

    title: str
    write: Write | WriteStudy
    opened: str
    supported_options: tuple[str, ...] = ()
    text: Callable[[Recommender, ExportOptions], str] | None = None
    write_untrained: Callable[[Picked, Path], None] | None = None


FORMATS: dict[str, Format] = {
    "layout": Format(
        "layout.json and its JSON Schema",
        write_layout,
        "python -c 'import sys, dasearch; print(dasearch.read_layout(sys.argv[1]))' {out}",
        write_untrained=write_picked_layout,
    ),
    "trials": Format(
        "the evaluated layouts of a study with their scores, and their JSON Schema",
        WriteStudy(write_study_trials),
        "dasearch run OTHER-STUDY --warm-start {out}/trials.json",
    ),
    "torch": Format(
        "one file of plain PyTorch with its weights, opened with only torch and safetensors",
        write_torch,
        "python {out}/recommender.py ITEM,ITEM,...",
    ),
    "snippet": Format(
        "code that builds the layout in your own training loop; with --out also the trained weights",
        write_snippet,
        "python {out}/snippet.py",
        ("sites",),
        untrained_snippet,
    ),
    "adapters": Format(
        "AdapterHub's adapters 1.3.0: configuration, weights and a loader",
        write_adapters,
        "see {out}/README.md",
        ("sites",),
    ),
    "hf": Format(
        "a folder for AutoModel.from_pretrained(..., trust_remote_code=True), with tokenizer and model card",
        write_hf,
        "see {out}/README.md",
    ),
    "onnx": Format(
        "one graph for ONNX runtimes: history tokens in, the best items and their scores out",
        write_onnx,
        "python {out}/serve.py ITEM,ITEM,...",
        ("top",),
    ),
    "pt2": Format(
        "the same graph from torch.export, opened with only torch",
        write_pt2,
        "python {out}/serve.py ITEM,ITEM,...",
        ("top",),
    ),
}


def require_format(form: str, options: ExportOptions) -> None:
    """Reject what cannot be written, before anything is read.

    Raises:
        ExportError: for an unknown format, or an option that it does not support.
    """
    if form not in FORMATS:
        raise ExportError(f"there is no format {form!r}{suggestion(form, list(FORMATS))}; choose {', '.join(FORMATS)}")
    for option, value in vars(options).items():
        if value is not None and option not in FORMATS[form].supported_options:
            able = [name for name, one in FORMATS.items() if option in one.supported_options]
            raise ExportError(f"format {form} does not support --{option}; remove it, or choose {', '.join(able)}")


def export(recommender: Recommender, form: str, out: Path, options: ExportOptions | None = None) -> Path:
    """Write a trained recommender in the format ``form`` into the new folder ``out``.

    Raises:
        ExportError: as `require_format`, for what the format cannot express, and if ``out`` exists.
    """
    options = options or ExportOptions()
    require_format(form, options)
    write = FORMATS[form].write
    if isinstance(write, WriteStudy):
        raise ExportError(f"format {form} describes a study, not a model; name a study that was run")
    with whole_folder(out, ExportError) as folder:
        write(recommender, folder, options)
    return out


def export_study(
    study: str,
    form: str,
    out: Path | None = None,
    options: ExportOptions | None = None,
    *,
    output: str = "runs",
    storage: str | None = None,
    pick: Pick | None = None,
) -> Path:
    """`export` of a study's winner, of the trained model in a folder, or of the study itself; by default into ``STUDY-FORM``.

    Args:
        study: a study's name, or the folder of a trained model.
        form: a name of `FORMATS`.
        out: a new folder; None: ``STUDY-FORM`` in the current one.
        options: of the format.
        output: the folder of the studies.
        storage: a database URL; None: the one in ``output``.
        pick: in a study with a cost, a confirmed layout other than the winner.
    """
    place = out or Path(f"{Path(study).name}-{form}")
    require_format(form, options or ExportOptions())
    require_free(place, ExportError)
    write = FORMATS[form].write
    untrained = None if pick is None else _untrained(study, form, pick, output=output, storage=storage)
    if untrained is not None:
        with whole_folder(place, ExportError) as folder:
            untrained(folder)
        return place
    if isinstance(write, WriteStudy):
        with closing(open_store(storage, output, create=False)) as store, whole_folder(place, ExportError) as folder:
            write.write(store, study, folder)
        return place
    return export(open_trained(study, output=output, storage=storage), form, place, options)


def _untrained(study: str, form: str, pick: Pick, *, output: str, storage: str | None) -> Callable[[Path], None] | None:
    """Fills an empty folder from a picked layout that the study did not train; None for one that it trained.

    Raises:
        ExportError: as of `picked_of`, for a format of whole studies, and for one that needs the weights.
    """
    if isinstance(FORMATS[form].write, WriteStudy):
        raise ExportError(f"format {form} describes a whole study, so --pick does not apply; remove it")
    picked, write = picked_of(study, pick, output=output, storage=storage), FORMATS[form].write_untrained
    if write is None:
        require_trained(picked, pick, form)
    return None if picked.trained or write is None else partial(write, picked)


def text_of_study(
    study: str,
    form: str,
    options: ExportOptions | None = None,
    *,
    output: str = "runs",
    storage: str | None = None,
    pick: Pick | None = None,
) -> str | None:
    """The text that a format prints for a study's winner without a folder; None if it prints none."""
    options = options or ExportOptions()
    require_format(form, options)
    text = FORMATS[form].text
    if text is not None and pick is not None:
        _untrained(study, form, pick, output=output, storage=storage)
    return None if text is None else text(open_trained(study, output=output, storage=storage), options)

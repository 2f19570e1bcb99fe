"""The command line. It only parses arguments, calls one function, and prints.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup
from typer.exceptions import TyperException

from dasearch import completion
from dasearch.commands import OUTPUT, PROGRAM, Place, resuming
from dasearch.errors import DasearchError, Interrupted, StoreError, WrongUse, spelled, without_passwords
from dasearch.folders import place_of
from dasearch.report import Format
from dasearch.report.encoding import write_any, writes_all
from dasearch.shipped import is_yaml
from dasearch.training.ranks import require_alone, started
from dasearch.version import __version__

if TYPE_CHECKING:
    from dasearch.config import Override
    from dasearch.report.view import StudyView
    from dasearch.search.executors import Workers
    from dasearch.search.named import Named
    from dasearch.search.study import Study

DEBUG = "DASEARCH_DEBUG"
FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
PIPE_WIDTH = 160
UNCUT = 1 << 16  # characters of a help sentence


class Commands(TyperGroup):
    """A command group that lists each command with its whole first sentence, wrapped and not truncated."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the visible commands with their first sentences."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        shown = {name: one for name, one in commands.items() if one is not None and not one.hidden}
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(UNCUT)) for name, one in shown.items()])


app = typer.Typer(
    name=PROGRAM,
    cls=Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find, layer by layer, whether an adapter of an LLM recommender should sit in series with its sublayer or parallel "
    "to it. Start with: dasearch run --budget 30",
)
data_app = typer.Typer(cls=Commands, help="Inspect and convert data sets.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(cls=Commands, help="Benchmark dasearch.", rich_markup_mode=None)
app.add_typer(bench_app, name="bench")

StudyArgument = Annotated[
    str,
    typer.Argument(
        autocompletion=completion.any_study,
        metavar="STUDY",
        help="A study file, the name of a stored study, which resumes with its own settings, or a shipped one: "
        "quickstart, amazon-scientific.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting of the study, as in trial.epochs=2; may be repeated."
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Database of the study: an SQLite file or a URL. Default: dasearch.db in the output folder."
    ),
]
SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", autocompletion=completion.any_study, help="A data set's name, its folder or file, or a study."
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="NAME", help="Its format, of `dasearch data formats`. Default: detected from its files."
    ),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="NAME", help="Also log to tensorboard, mlflow or wandb; may be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StoredStudy = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", autocompletion=completion.stored_study, help="The name of a stored study, or its file."
    ),
]
BudgetOption = Annotated[
    int | None, typer.Option(metavar="N", help="Number of completed evaluations; overrides search.budget.")
]
NoTrainOption = Annotated[
    bool, typer.Option("--no-train", help="Stop before the final training and the evaluation on the test split.")
]
OutputOption = Annotated[str, typer.Option(metavar="FOLDER", help="The studies' output folder.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Number of worker processes, on Ray or SLURM. Default: train in this process."
    ),
]
CpusOption = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-worker", metavar="N", min=1, help="Threads of each worker. Default: its share of the cores."
    ),
]
GpusOption = Annotated[
    float,
    typer.Option(
        "--gpus-per-worker", metavar="SHARE", min=0, help="GPUs of each worker, as in 1, or 0.25 to share one."
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Address of a running Ray cluster, for --workers; auto: the one of this machine."
    ),
]
SlurmOption = Annotated[
    str | None,
    typer.Option(
        metavar="KEY=VALUE,...",
        help="Submit each of the --workers as a SLURM job with these parameters, as in "
        "partition=gpu,time=120,gpus_per_node=1; local: jobs are processes of this machine.",
    ),
]
ExchangeOption = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="Object store for Ray workers that share no disk with this machine, as in s3://BUCKET/PREFIX.",
    ),
]
OwnOutput = Annotated[
    str | None,
    typer.Option("--output", metavar="FOLDER", help="The studies' output folder. Default: the study's own, or runs."),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=completion.trained_model,
        help="The folder of a trained model, or a finished study.",
    ),
]


class SplitName(StrEnum):
    """The split to evaluate on."""

    VALIDATION = "validation"
    TEST = "test"


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def begin(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Handle the options that precede every command."""
    _show_help(context)
    _quiet()


@data_app.callback(invoke_without_command=True)
@bench_app.callback(invoke_without_command=True)
def _show_help(context: typer.Context) -> None:
    """Print the help of a group called without a command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


@app.command()
def run(
    study: StudyArgument = "quickstart",
    budget: BudgetOption = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed; overrides the study's own.")] = None,
    output: OwnOutput = None,
    storage: StorageOption = None,
    changes: SetOption = None,
    no_train: NoTrainOption = False,
    warm_start: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Warm start from another study: its trials.json, a model's layout.json, or a database, as in "
            "runs/dasearch.db:STUDY. Its depth may differ.",
        ),
    ] = None,
    trackers: TrackOption = None,
    workers: WorkersOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = 0.0,
    ray: RayOption = None,
    slurm: SlurmOption = None,
    exchange: ExchangeOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved study, its parameters, threads and an estimate of time; write nothing.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with --dry-run.")] = False,
) -> None:
    """Search for the best layout, confirm it with fresh seeds, train it, and evaluate it on the test split once.

    Run the same command again to resume, or `dasearch resume STUDY`.
    """
    _starting()
    from dasearch.report.terminal import show_estimate
    from dasearch.search.estimate import estimate
    from dasearch.search.prior import prior_trials

    require_alone("run")
    if as_json and not dry_run:
        raise WrongUse("a run prints its progress, not JSON; add --dry-run, or use `dasearch status --json`")
    crew = _crew(workers, cpus, gpus, ray, slurm, exchange)
    console = _console()
    loaded = _study(study, _overrides(changes, budget, seed), output, storage, console=_beside(as_json))
    if dry_run:
        if warm_start is not None:
            prior_trials(warm_start, loaded.space())  # rejected here as in the run itself
        costs = estimate(loaded, train=not no_train)
        if as_json:
            _print_json({"settings": loaded.settings.model_dump(mode="json"), "estimate": asdict(costs)})
        else:
            show_estimate(console, loaded.settings.yaml(), costs)
        return
    _run(loaded, console, storage, trackers, crew, train=not no_train, warm_start=warm_start)


@app.command()
def resume(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            autocompletion=completion.stored_study,
            help="The name of a stored study, or its file. Default: the only unfinished one.",
        ),
    ] = None,
    budget: BudgetOption = None,
    output: OwnOutput = None,
    storage: StorageOption = None,
    changes: SetOption = None,
    no_train: NoTrainOption = False,
    trackers: TrackOption = None,
    workers: WorkersOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = 0.0,
    ray: RayOption = None,
    slurm: SlurmOption = None,
    exchange: ExchangeOption = None,
) -> None:
    """Resume a stored study where it stopped, with its own settings.

    Workers and trackers are not stored; name them again.
    """
    _starting()
    from dasearch.search.named import resumed_study

    require_alone("resume")
    crew = _crew(workers, cpus, gpus, ray, slurm, exchange)
    console = _console()
    if study is not None and is_yaml(study):
        study, output = _stored_study(study, output)
    named = resumed_study(study, _overrides(changes, budget, None), output=output, storage=storage)
    _run(_told(named, console), console, storage, trackers, crew, train=not no_train)


def _run(
    loaded: Study,
    console: Console,
    storage: str | None,
    trackers: list[str] | None,
    crew: Workers | None,
    *,
    train: bool,
    warm_start: str | None = None,
) -> None:
    """Run or resume a study, and print its results and the next commands.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM once the study is stored.
    """
    from dasearch.report.terminal import summary
    from dasearch.search.named import resumable
    from dasearch.search.progress import Terminal

    place = Place(loaded.settings.output, storage)
    again = resuming(loaded.settings.name, place, _crew_options(crew), trackers or ())
    try:
        with closing(_tracked(loaded, Terminal(console), trackers)) as listener:
            status = loaded.run(train=train, listener=listener, warm_start=warm_start, workers=crew)
    except KeyboardInterrupt:
        if not resumable(loaded):
            raise
        raise Interrupted(f"interrupted; resume with: {again}") from None
    summary(console, status, place, resume=again)


def _crew(count: int | None, *options: Any) -> Workers | None:
    """The requested workers, if any, with the options of `Workers`; rejects invalid ones before the study is prepared."""
    from dasearch.search.executors import Workers
    from dasearch.search.executors.exchange import require_exchange
    from dasearch.search.executors.slurm import asked_of_slurm

    asked = Workers(count or 1, *options)
    if count is None:
        if asked != Workers():
            raise WrongUse("a run without --workers trains in this process; add --workers N")
        return None
    if asked.slurm is not None:
        if asked.address is not None:
            raise WrongUse("workers run on Ray or as SLURM jobs; remove --ray or --slurm")
        if asked.exchange is not None:
            raise WrongUse("SLURM jobs communicate through files in the shared output; remove --exchange")
        asked_of_slurm(asked)
    if asked.exchange is not None:
        require_exchange(asked.exchange)
    return asked


def _crew_options(crew: Workers | None) -> dict[str, object]:
    """The options that ask for these workers."""
    if crew is None:
        return {}
    return {
        "--workers": crew.count,
        "--cpus-per-worker": crew.cpus,
        "--gpus-per-worker": crew.gpus,
        "--ray": crew.address,
        "--slurm": crew.slurm,
        "--exchange": crew.exchange,
    }


@app.command()
def status(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            autocompletion=completion.stored_study,
            help="A study's name or file, whose trials are listed; without one, all studies are listed, one per line.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Write every layout in full, however long its line; JSON always does.")
    ] = False,
    output: OwnOutput = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the status of all studies, one per line, or of one with its trials; works while they run.

    Deep layouts are shown as an id, which --layout accepts, and an abbreviation: 3f9a2c SSS*12 2:PSS 7:SSP is
    serial in twelve layers except for the second and the seventh.
    """
    from dasearch.report.terminal import Layouts, show_status, show_studies
    from dasearch.search.store import open_store
    from dasearch.search.study import status as study_status

    name, folder = _stored_study(study, output) if study else (None, output or OUTPUT)
    store = open_store(storage, folder, create=False)
    try:
        names = [name] if name else store.study_names()
        statuses = [study_status(store, one) for one in names]
    finally:
        store.close()
    if as_json:
        records = [_status_record(one) for one in statuses]
        _print_json(records[0] if study else records)
    elif study:
        show_status(_console(), *statuses, layouts=Layouts.FULL if full else Layouts.FITTING)
    else:
        show_studies(_console(), statuses)


@app.command()
def report(
    study: StoredStudy,
    form: Annotated[
        Format, typer.Option("--format", case_sensitive=False, help="html: with figures; md: text and tables.")
    ] = Format.HTML,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write. Default: report.html in the study's folder.")
    ] = None,
    output: OwnOutput = None,
    storage: StorageOption = None,
) -> None:
    """Write a study as one file: the verdict, figures, tables, settings, versions; works while the study runs."""
    from dasearch.report.page import write_report

    name, folder = _stored_study(study, output)
    view = _view(name, folder, storage)
    path = write_report(view, out or place_of(folder, StoreError) / view.name / f"report.{form.value}", form)
    _console().print(f"report: {path}", soft_wrap=True, markup=False)


@app.command()
def compare(
    study: StoredStudy,
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", autocompletion=completion.stored_study, help="The study to compare it with."),
    ] = None,
    trials: Annotated[
        tuple[int, int] | None, typer.Option(metavar="I J", help="Compare two trials of STUDY by their numbers.")
    ] = None,
    output: OwnOutput = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two studies (STUDY OTHER), or two trials of one (STUDY --trials 3 17)."""
    from dasearch.report import compare as side_by_side

    if (other is None) == (trials is None):
        raise WrongUse("give a second study to compare with, or two trials of one as in --trials 3 17")
    if trials is not None:
        view = _view(*_stored_study(study, output), storage)
        changes = view.difference(*trials)
        if as_json:
            _print_json(side_by_side.trial_difference_record(view, changes))
        else:
            side_by_side.show_trial_difference(_console(), view, changes)
        return
    both = (_view(*_stored_study(one, output), storage) for one in (study, str(other)))
    difference = side_by_side.compare_studies(*both)
    if as_json:
        _print_json(side_by_side.study_difference_record(difference))
    else:
        side_by_side.show_study_difference(_console(), difference)


@app.command()
def dashboard(
    output: OutputOption = "runs",
    storage: StorageOption = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: any free port.")] = 8765,
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote", help="Allow an address that other machines reach; requires a token from visitors."
        ),
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="SECRET", envvar="DASEARCH_TOKEN", help="The token that visitors must send. Default: a new one."
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve pages that follow running studies; read-only, binds to localhost."""
    from dasearch.report.dashboard.server import Address, serve

    console = _console()
    serve(
        storage,
        output,
        Address(host, port, allow_remote=allow_remote, token=token),
        open_browser=open_browser,
        say=lambda line: console.print(line, soft_wrap=True, markup=False),
    )


@app.command()
def train(
    layout: Annotated[
        str,
        typer.Option(
            metavar="LAYOUT",
            autocompletion=completion.layout,
            help="SPS-PPS-..., an id that `status` shows, all-serial, all-parallel, or best (so far).",
        ),
    ],
    study: StudyArgument = "quickstart",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to save. Default: models/LAYOUT in the study's folder.")
    ] = None,
    output: OwnOutput = None,
    storage: StorageOption = None,
    changes: SetOption = None,
    trackers: TrackOption = None,
) -> None:
    """Train one layout on all users by the study's final recipe, without a search. The test split is not read.

    On several GPUs: torchrun --nproc-per-node N -m dasearch train STUDY --layout LAYOUT --set final.accumulate=N
    """
    _starting()
    from dasearch.search.progress import Terminal
    from dasearch.search.single import train_layout

    console = _console()
    loaded = _study(study, changes or (), output, storage, console=console)
    with closing(_tracked(loaded, Terminal(console), trackers if started().first else None)) as listener:
        folder, trained = train_layout(loaded, layout, out=out, listener=listener)
    console.print(f"validation: {_metrics_text(trained.metrics.record())}", soft_wrap=True)
    console.print(
        f"{trained.parameters:,} trained parameters, {trained.seconds:.1f} s, peak memory {trained.peak_memory / 2**20:,.0f} MiB"
    )
    console.print(f"saved model: {folder}", soft_wrap=True, markup=False)


@app.command()
def ablate(
    study: StudyArgument = "quickstart",
    file: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="An ablation file, or a shipped one. Default: that of the study's model."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="GROUP", help="A group, by a prefix of its name; may be repeated.")
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            metavar="LAYOUT",
            autocompletion=completion.layout,
            help="all-serial, all-parallel, best (so far), SPS-PPS-..., or an id that `status` shows.",
        ),
    ] = "all-serial",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of trainings per variant.")] = 3,
    short: Annotated[
        bool, typer.Option("--short", help="Train on Data_BO with the trial recipe, rather than with the final one.")
    ] = False,
    output: OwnOutput = None,
    storage: StorageOption = None,
    changes: SetOption = None,
    trackers: TrackOption = None,
    workers: WorkersOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = 0.0,
    ray: RayOption = None,
    slurm: SlurmOption = None,
    exchange: ExchangeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the paper's ablations of a study: one change at a time, on validation data.

    Run the same command again to resume.
    """
    _starting()
    from dasearch.fitting import show_table
    from dasearch.report.ablation import ablation_figure, ablation_record, ablation_table
    from dasearch.report.page import write_figure
    from dasearch.search.ablation import Ablation, load_variants
    from dasearch.search.progress import Terminal

    require_alone("ablate")
    crew = _crew(workers, cpus, gpus, ray, slurm, exchange)
    console, beside = _console(), _beside(as_json)
    loaded = _study(study, changes or (), output, storage, console=beside)
    variants = load_variants(loaded, file, layout=layout, only=only or (), short=short)
    terminal = Terminal(beside)
    with closing(_tracked(loaded, terminal, trackers)) as listener:
        scored = Ablation(loaded, variants, seeds, short=short, listener=listener, workers=crew).run()
    path = loaded.folder / "ablation.html"
    write_figure(ablation_figure(scored, title=f"Ablations of {loaded.settings.name}"), path)
    if as_json:
        _print_json(ablation_record(scored))
        return
    console.print()
    show_table(console, ablation_table(scored, console.width))
    console.print(f"figure: {path}", soft_wrap=True, markup=False)


@app.command()
def evaluate(
    model: ModelArgument,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="A data set with the same items and users. Default: the model's own."),
    ] = None,
    split: Annotated[
        SplitName,
        typer.Option(
            case_sensitive=False,
            help="The split to rank. The test split is for final evaluation, not for model selection.",
        ),
    ] = SplitName.VALIDATION,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    output: OutputOption = "runs",
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank held-out items with a trained model: MRR, Recall@10, NDCG@10 over the full catalogue."""
    from dasearch.export.source import open_trained
    from dasearch.search.single import evaluate_saved

    opened = open_trained(model, output=output, storage=storage, device=device)
    metrics = evaluate_saved(opened, source=data, test=split is SplitName.TEST)
    if as_json:
        _print_json({"split": split.value, **metrics.record()})
    else:
        _console().print(f"{split.value}: {_metrics_text(metrics.record())}")


@app.command()
def recommend(
    model: ModelArgument,
    history: Annotated[
        str | None,
        typer.Option(
            metavar="ITEM,ITEM,...",
            help="Item ids, oldest first; catalogue.jsonl in the folder lists them. Of ids with commas a JSON list: "
            '["a,b", "c"].',
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Answer a file: .parquet, .jsonl or .jsonl.gz, each row with a history (a list of item ids), "
            "and optionally a user and an id.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Output file of the answers to --from, in any of these formats.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top", metavar="N", help="Number of items.")] = 10,
    user: Annotated[
        str | None,
        typer.Option(metavar="USER", help="A user of the training data, whose collaborative vector is used."),
    ] = None,
    include_seen: Annotated[
        bool,
        typer.Option(
            "--include-seen/--exclude-seen",
            help="Also recommend items of the history, as the metrics rank all items: for data where "
            "users repeat purchases.",
        ),
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip rows of --from that cannot be answered, and count them.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file of --out.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows of --from per batch. Default: chosen for the device.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    output: OutputOption = "runs",
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the most likely next items of a history, or answer a file of histories into another file."""
    from dasearch.export.source import open_trained
    from dasearch.training.request_files import history_of

    if (history is None) == (source is None) or (source is None) != (out is None):
        raise WrongUse("give a history as in --history ITEM,ITEM, or a file of them as in --from FILE --out FILE")
    if source is not None and user is not None:
        raise WrongUse("--user requires --history; in a file the column user names the user of a history")
    opened = open_trained(model, output=output, storage=storage, device=device)
    if source is not None and out is not None:
        options = {"include_seen": include_seen, "skip_bad": skip_bad, "overwrite": overwrite, "batch_size": batch_size}
        _answer_file(opened, source, out, as_json, k=k, **options)
        return
    items = history_of(str(history), {item.identifier for item in opened.items})
    answers = opened.recommend(items, k, user=user, include_seen=include_seen)
    if as_json:
        _print_json([one._asdict() for one in answers])
        return
    console = _console()
    if not answers:
        console.print("the history holds every item; --include-seen ranks them all", soft_wrap=True, markup=False)
    width = max((len(one.item) for one in answers), default=0)
    for rank, one in enumerate(answers, start=1):
        console.print(f"{rank:>3}  {one.item:<{width}}  {one.score:8.3f}  {one.title}", soft_wrap=True, markup=False)


@app.command(name="export")
def export_command(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            autocompletion=completion.stored_study,
            help="A finished study, or the folder of a trained model.",
        ),
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="A format of `--list`.")] = "layout",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new or empty folder. Default: STUDY-FORMAT; snippet prints."),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(metavar="SITE,SITE", help="Export only these sites, where a format does not support all."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="onnx, pt2: number of items that the graph returns. Default: 10."),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="In a study with a cost, a layout of its confirmed front: knee, best or cheapest-within-noise. Default: its "
            "trained winner.",
        ),
    ] = None,
    list_formats: Annotated[bool, typer.Option("--list", help="Show the formats; write nothing.")] = False,
    output: OutputOption = "runs",
    storage: StorageOption = None,
) -> None:
    """Write the trained winner in a format that other trainers and servers open."""
    from dasearch.export import FORMATS, ExportOptions, export_study, known_pick, text_of_study
    from dasearch.report.exports import show_formats, show_written

    if list_formats:
        show_formats(_console(), FORMATS)
        return
    if study is None:
        raise WrongUse("name a study or the folder of a trained model, as in: dasearch export quickstart --format hf")
    form = spelled(form, FORMATS)
    where: dict[str, Any] = {"output": output, "storage": storage, "pick": known_pick(pick)}
    options = ExportOptions(None if sites is None else tuple(_listed(sites)), top)
    if out is None and (text := text_of_study(study, form, options, **where)) is not None:
        typer.echo(text, nl=False)
        return
    folder = export_study(study, form, out, options, **where)
    show_written(_console(), folder, FORMATS[form].opened)


@app.command()
def doctor(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            autocompletion=completion.stored_study,
            help="A study's name or file, to check it rather than the machine.",
        ),
    ] = None,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="For STUDY: remove damaged and unused checkpoints, return lost trials to the queue.",
        ),
    ] = False,
    output: OwnOutput = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show versions, device, cache and language models; or check a study.

    Without --fix nothing is written. For a study the exit code is 1 where a check fails.
    """
    from dasearch.report.doctor import examine, show

    if study is not None:
        name, folder = _stored_study(study, output)
        _doctor_study(name, fix=fix, output=folder, storage=storage, as_json=as_json)
        return
    if fix:
        raise WrongUse("--fix needs a study; name one, as in: dasearch doctor quickstart --fix")
    diagnosis = examine()
    if as_json:
        _print_json(diagnosis.record())
    else:
        show(_console(), diagnosis)


@data_app.command()
def stats(
    source: SourceArgument = "complete-journey",
    form: FormatOption = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As in data.min_item_interactions=4; may be repeated."),
    ] = None,
    output: OwnOutput = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a data set's statistics: users, items, interactions, lengths, ties (the paper's table 1 and more)."""
    from dasearch.data import statistics
    from dasearch.report.data import show_statistics
    from dasearch.search.named import named_dataset

    counts = statistics(named_dataset(source, _reading(changes, form), output=output, storage=storage))
    if as_json:
        _print_json(asdict(counts))
    else:
        show_statistics(_console(), counts)


@data_app.command()
def convert(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    form: FormatOption = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="MAP", help='For a table: "{user: customer, item: sku, timestamp: time, title: name}".'),
    ] = None,
    items: Annotated[str | None, typer.Option(metavar="FILE", help="For a table: a file of items.")] = None,
    output: OwnOutput = None,
    storage: StorageOption = None,
) -> None:
    """Write everything a source holds as interactions.tsv.gz and items.jsonl.gz. Ties and filters apply at reading."""
    from dasearch.data import convert as convert_source
    from dasearch.search.named import named_source

    named = named_source(source, _reading(None, form, columns, items), output=output, storage=storage)
    written = convert_source(*named, out=out)
    _console().print(
        f"{out}: {written.users:,} users, {written.items:,} items, {written.interactions:,} interactions",
        soft_wrap=True,
        markup=False,
    )


@data_app.command()
def formats() -> None:
    """List the supported data formats with their files."""
    from dasearch.data import DATASETS, READERS
    from dasearch.report.data import show_formats

    show_formats(_console(), READERS, DATASETS)


@bench_app.command()
def samplers(
    families: Annotated[
        list[str] | None,
        typer.Option("--family", metavar="NAME", help="A planted family; may be repeated. Default: all."),
    ] = None,
    sites: Annotated[
        list[int] | None,
        typer.Option(
            "--sites",
            "--bits",
            metavar="N",
            help="Sites of planted landscapes, 3 per layer; may be repeated. Default: 36 and 90.",
        ),
    ] = None,
    choices: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Choices of every site of planted landscapes, shown as in smooth/36/3; may be repeated. Default: 2.",
        ),
    ] = None,
    tables: Annotated[
        list[Path] | None,
        typer.Option("--table", metavar="FILE", help="A table of real trainings; default: those of the project."),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--sampler", metavar="NAME", help="A sampler to compare with PRSampler. Default: all."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Races of each sampler on each landscape.")] = 20,
    trials: Annotated[int, typer.Option(min=11, metavar="N", help="Trials of a race on a planted landscape.")] = 60,
    batches: Annotated[
        str,
        typer.Option(
            "--batch",
            metavar="N,...",
            help="Numbers of trials asked for before they are told; compared with one at a time.",
        ),
    ] = "1",
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Concurrent races, one process each.")] = 1,
    ask: Annotated[bool, typer.Option("--ask/--no-ask", help="Also measure the seconds of an ask.")] = True,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of races.jsonl, scores.json, samplers.html.")
    ] = Path("bench"),
    as_json: JsonOption = False,
) -> None:
    """Race PRSampler against other samplers on planted landscapes and on tables of real trainings.

    Run the same command again to resume.
    """
    from dasearch.bench.command import race_samplers
    from dasearch.report.bench import figure, show_asks, show_costs, show_scores
    from dasearch.report.page import write_figure

    console = _console()
    races = race_samplers(
        families=families,
        sites=sites or [36, 90],
        choices=choices or [2],
        tables=tables,
        samplers=names,
        seeds=seeds,
        trials=trials,
        workers=workers,
        ask=ask,
        batches=_numbers(batches),
        out=out,
        say=(lambda _: None) if as_json else lambda line: console.print(line, soft_wrap=True, markup=False),
    )
    write_figure(figure(races.races), out / "samplers.html")
    if as_json:
        _print_json(races.record())
        return
    for count in sorted({score.trials for score in races.scores}):
        show_scores(console, races.scores, count)
        show_costs(console, races.scores, count)
    if races.ask_seconds:
        show_asks(console, races.ask_seconds)
    console.print(f"figure: {out / 'samplers.html'}   numbers: {out / 'scores.json'}", soft_wrap=True, markup=False)


def main() -> None:
    """Run the command line; errors are one sentence, never a traceback."""
    _interrupt_by_signals()
    if sys.stdout is None:  # closed by the caller
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # open as long as the process
    for stream in (sys.stdout, sys.stderr):
        write_any(stream)
    sys.exit(run_command(sys.argv[1:]))


def _interrupt_by_signals() -> None:
    """Handle Ctrl-C and SIGTERM: the first stops with everything recorded, the second at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for caught in (signal.SIGINT, signal.SIGTERM):
            signal.signal(caught, lambda number, frame: os._exit(INTERRUPTED))
        raise KeyboardInterrupt

    for caught in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(caught) is not signal.SIG_IGN:  # as in a shell's background jobs
            signal.signal(caught, stop)


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        code = app(args=arguments, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return _interrupted() if code == INTERRUPTED else int(code or 0)
    except typer.Exit as done:
        return _interrupted() if done.exit_code == INTERRUPTED else done.exit_code
    except BrokenPipeError:  # the reader of the output, such as `head`, closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except TyperException as error:
        return _complain(error.format_message(), error.exit_code)
    except Interrupted as error:
        return _complain(str(error), INTERRUPTED)
    except DasearchError as error:
        return _complain(str(error), WRONG_USE if isinstance(error, WrongUse) else FAILED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _complain(
                f"{str(error.filename)[:PIPE_WIDTH]!r} is too long for a file name; name another", WRONG_USE
            )
        if os.environ.get(DEBUG):
            raise
        reason = " ".join(str(error).split()) or "no further reason"
        who = "" if started().first else f"rank {started().rank}: "
        return _complain(f"{who}{type(error).__name__}: {reason} (set {DEBUG}=1 to see where)", FAILED, heard=True)


def _interrupted() -> int:
    return _complain("interrupted; run the same command again to resume", INTERRUPTED)


def _complain(sentence: str, code: int, *, heard: bool = False) -> int:
    """Print an error; common ones are printed by one rank per machine, with ``heard`` also by this one."""
    console = Console(stderr=True, quiet=not (heard or started().speaks))
    console.print(
        f"dasearch: {without_passwords(sentence)}", style="red", soft_wrap=True, markup=False, highlight=False
    )
    return code


def _console() -> Console:
    """The console, wide without a terminal so that tables in files and pipes are complete; only rank 0 prints."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, width=width, quiet=not started().first)


def _beside(as_json: bool) -> Console:
    """The console for messages: stderr where stdout is for JSON."""
    return Console(stderr=True) if as_json else _console()


def _study(
    name: str, overrides: Iterable[str | Override], output: str | None, storage: str | None, *, console: Console
) -> Study:
    """The study that a command names; prints a note where its settings come from a database."""
    from dasearch.search.named import named_study

    return _told(named_study(name, overrides, output=output, storage=storage), console)


def _told(named: Named, console: Console) -> Study:
    """A resolved study; prints the note on its settings."""
    if named.recalled is not None:
        console.print(named.recalled, soft_wrap=True, markup=False)
    return named.study


def _starting() -> None:
    """Show a spinner while PyTorch and the training code are imported, which takes seconds."""
    with Console(stderr=True, quiet=not started().first).status("starting: loading PyTorch ..."):
        import dasearch.search.study  # noqa: F401  # imported here because it is slow


def _quiet() -> None:
    """Silence the warnings of libraries unless debugging is on."""
    if os.environ.get(DEBUG):
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _tracked(study: Any, terminal: Any, trackers: list[str] | None) -> Any:
    """A listener for the terminal and the trackers; the caller closes it."""
    from dasearch.report.tracking import track
    from dasearch.search.events import Listeners

    return Listeners(terminal, track(study, *trackers or (), say=terminal.remarks))


def _overrides(changes: list[str] | None, budget: int | None, seed: int | None) -> list[str | Override]:
    from dasearch.config import Override

    own = [("--budget", "search.budget", budget), ("--seed", "seed", seed)]
    return [*(changes or []), *(Override.option(*option) for option in own if option[-1] is not None)]


def _reading(
    changes: list[str] | None, form: str | None, columns: str | None = None, items: str | None = None
) -> list[str | Override]:
    from dasearch.config import Override

    own = [("--format", "data.format", form), ("--items", "data.items", items)]
    overrides: list[str | Override] = list(changes or [])
    overrides += [Override.option(*option) for option in own if option[-1] is not None]
    return overrides if columns is None else [*overrides, Override(f"data.columns={columns}", f"--columns {columns}")]


def _listed(text: str) -> list[str]:
    """The parts of a comma-separated text."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    """Parse comma-separated whole numbers."""
    parts = _listed(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise WrongUse(f"{text!r} is not a list of whole numbers; separate them by commas, as in 1,4,8")
    return [int(part) for part in parts]


def _stored_study(study: str, output: str | None) -> tuple[str, str]:
    """The name and the output folder of a stored study, which is given by its name or its study file."""
    from dasearch.config import load_study

    if not is_yaml(study):
        return study, output or OUTPUT
    settings = load_study(study)
    return settings.name, output or settings.output


def _view(name: str, output: str, storage: str | None) -> StudyView:
    """A snapshot of a stored study."""
    from dasearch.report.view import read_view
    from dasearch.search.store import open_store

    with closing(open_store(storage, output, create=False)) as store:
        return read_view(store, name)


def _doctor_study(name: str, *, fix: bool, output: str, storage: str | None, as_json: bool) -> None:
    """Print a study's checkup, after a repair with ``--fix``; exit with 1 where a check fails."""
    from dasearch.report.checkup import examine_study, mend_study, summary

    done = mend_study(name, output=output, storage=storage) if fix else []
    checkup = examine_study(name, output=output, storage=storage)
    if as_json:
        _print_json({"study": name, "done": done, "checks": [asdict(one) for one in checkup]})
    else:
        for line in (*done, *(f"{one.name}: {one.says}" for one in checkup), summary(checkup)):
            _console().print(line, soft_wrap=True, markup=False)
    if not all(one.good for one in checkup):
        raise typer.Exit(FAILED)


def _status_record(found: Any) -> dict[str, Any]:
    from dasearch.report.terminal import later_record, prior_record, standings_record

    return {
        "name": found.name,
        "phase": found.phase,
        "budget": found.budget,
        "trials": [{**asdict(trial), "layout": str(trial.layout or "")} for trial in found.trials],
        "settings_found": dict(found.settings_found),
        "confirmation": standings_record(found.standings, found.selection),
        "later_trainings": [later_record(training) for training in found.later_trainings],
        "results": [result._asdict() for result in found.results],
        "artifacts": [artifact._asdict() for artifact in found.artifacts],
        "warm_start": [prior_record(trial) for trial in found.prior],
    }


def _answer_file(recommender: Any, source: Path, out: Path, as_json: bool, **options: Any) -> None:
    from dasearch.report.terminal import show_answered
    from dasearch.search.progress import Terminal
    from dasearch.training.request_files import answer_file

    with closing(Terminal(_beside(as_json))) as terminal:
        done = answer_file(recommender, source, out=out, listen=terminal.answering, **options)
    if as_json:
        _print_json({"out": str(out), **done._asdict()})
    else:
        show_answered(_console(), done, out)


def _metrics_text(record: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in record.items())


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=not writes_all(sys.stdout), indent=2))


if __name__ == "__main__":
    main()

"""The commands of `mtl-keras`. Each loads what it needs when it runs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mtl_keras_cli import comparing, datasets, doctor, tensorflow
from mtl_keras_cli.errors import Commands
from mtl_keras_cli.options import Code, Jit
from mtl_keras_cli.text import examples, make_console, plain_table

if TYPE_CHECKING:
    from mtl_keras.runs import Run, RunConfig, TrainingConfig

app = typer.Typer(
    cls=Commands,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _allow(code: list[str] | None) -> None:
    from mtl_keras import applications

    for name in code or ():
        applications.allow(name)


def _version(show: bool) -> None:
    if show:
        print(f"mtl-keras {importlib.metadata.version('mtl_keras')}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "mtl-keras init houses.csv --to houses.toml",
        "mtl-keras train houses.toml",
        "mtl-keras tune tuning/vision.toml",
        "mtl-keras compare vision --seeds 3",
        "mtl-keras export runs/vision-1 --to models/vision",
    ),
)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Multi-task learning for Keras: search, train, compare, evaluate, export."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


@app.command(
    epilog=examples(
        "mtl-keras init houses.csv --to houses.toml",
        "mtl-keras init houses.csv --to houses.toml --tasks price,sold",
        "mtl-keras init reviews/*.csv --to my.toml --task-by domain --tasks positive",
    )
)
def init(
    files: Annotated[list[str], typer.Argument(help="CSV, TSV or Parquet files.")],
    to: Annotated[pathlib.Path, typer.Option(help="Data file to write, TOML.")],
    tasks: Annotated[
        str | None,
        typer.Option(help="Columns that are tasks, with commas between; else a guess."),
    ] = None,
    task_by: Annotated[
        str | None,
        typer.Option(
            help="Column that names each row's task; --tasks is then the labels'."
        ),
    ] = None,
) -> None:
    """Look at a table and write a data file for it, to be read and changed.

    The file says which columns are features and tasks, of which kinds, and how rows
    are split; the other commands take it in place of an application's name.
    """
    tensorflow.load()
    from mtl_keras_cli import tables

    tables.init(
        files,
        to,
        tasks=None if tasks is None else _split(tasks),
        task_by=task_by,
        console=make_console(),
    )


@app.command(
    epilog=examples(
        "mtl-keras train vision",
        "mtl-keras train houses.toml --sharing mmoe",
        "mtl-keras train vision --balancing pcgrad --tasks left,right --epochs 5",
        "mtl-keras train vision --balancing 'uncertainty + cagrad(c=0.5)'",
        "mtl-keras train vision --sharing 'mmoe(num_experts=4)'",
        "mtl-keras train houses.toml --preferences 'manifold(rank=4)'",
        "mtl-keras train --from-study runs/study-vision --out runs/best",
    )
)
def train(
    application: Annotated[
        str | None,
        typer.Argument(
            help="What to train: vision, a data file, my_file.py:MyApplication."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set; see `mtl-keras datasets list`. Of a function that builds a "
            "model: a data file, or FILE.py:NAME, which returns data sets."
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, with commas between them; else all.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Shared backbone.")] = None,
    sharing: Annotated[
        str | None,
        typer.Option(help="How tasks share, with arguments: 'mmoe(num_experts=4)'."),
    ] = None,
    balancing: Annotated[
        str | None,
        typer.Option(
            help="How tasks are balanced; else the application's way. With arguments: "
            "'cagrad(c=0.5)'. A loss balancer and a gradient balancer may be joined "
            "by a plus."
        ),
    ] = None,
    preferences: Annotated[
        str | None,
        typer.Option(
            help="Make the trade-off between tasks an input of the model: manifold or "
            "hypernetwork, with arguments: 'manifold(rank=4, scalarisation=cosmos)'."
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Width of the backbone.")] = None,
    depth: Annotated[int | None, typer.Option(help="Stages of the backbone.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="First learning rate of the cosine decay.")
    ] = None,
    accumulate: Annotated[
        bool | None,
        typer.Option(
            help="Take a batch of every data set in each step (text), so that "
            "gradients of all tasks meet."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only this many training samples.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed; else 0.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32, mixed_float16 or mixed_bfloat16; else Keras's."),
    ] = None,
    jit: Jit = None,
    steps_per_execution: Annotated[
        int | None,
        typer.Option(
            help="Steps that one call of the compiled training takes; else 1."
        ),
    ] = None,
    from_study: Annotated[
        pathlib.Path | None,
        typer.Option(help="Take the settings of a study's best trial."),
    ] = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Run folder to write; else runs/APPLICATION-N."),
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Keep a finished run with these settings.")
    ] = False,
    checkpoint_steps: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints within an epoch; else none."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="End after this many epochs without a better validation score (the "
            "mean of the tasks' main metrics); else never."
        ),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="The same weights bit for bit; may be slower."
        ),
    ] = False,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="mirrored, for all GPUs of this machine, or multiworker, for the "
            "machines that TF_CONFIG names; else one device."
        ),
    ] = None,
) -> None:
    """Train one model and write a run folder.

    The folder gets model.keras, config.json, history.csv, metrics.json (on the
    test split) and TensorBoard logs. Settings left out take the application's
    defaults. Stopped and started again, it resumes after the last epoch that was
    finished. A finished run, named by --out, is trained further by larger --epochs.
    """
    tensorflow.load(starts=strategy is None)
    from mtl_keras import applications, runs
    from mtl_keras.runs import strategies, unfinished
    from mtl_keras.specs import read_spec

    over = strategies.make(strategy)
    console = make_console()
    overrides: dict[str, Any] = {
        "data": None if data is None else applications.allow(data),
        "tasks": None if tasks is None else _split(tasks),
        "backbone": backbone,
        "sharing": None if sharing is None else read_spec(sharing),
        "balancing": None if balancing is None else read_spec(balancing),
        "preferences": None if preferences is None else read_spec(preferences),
        "width": width,
        "depth": depth,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "limit": limit,
        "accumulate": accumulate,
        "seed": seed,
        "precision": precision,
        "jit": jit,
        "steps_per_execution": steps_per_execution,
        "patience": patience,
    }
    config = dataclasses.replace(
        _base_config(application, from_study, console),
        **{name: value for name, value in overrides.items() if value is not None},
    ).validate()
    out = out or unfinished.next_free("runs", config)
    if reuse and out.exists():
        run = runs.load_run(out)
        _check_same(run, config)
        console.print(f"{out} is there already with these settings: reused.")
        _print_metrics(console, run.metrics)
        return
    if summary := config.get_application().summary():
        console.print(summary, soft_wrap=True, markup=False, highlight=False)
    results = runs.train(
        config,
        out,
        checkpoint_steps=checkpoint_steps,
        deterministic=deterministic,
        strategy=over,
        console=console,
    )
    _print_metrics(console, results.metrics)
    console.print(f"Wrote {out}", soft_wrap=True)


def _split(tasks: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in tasks.split(",") if name.strip())


def _base_config(
    application: str | None, from_study: pathlib.Path | None, console: Console
) -> RunConfig:
    from mtl_keras import applications, runs, search
    from mtl_keras.errors import InputError

    if application is not None:
        application = applications.allow(application)
    if from_study is None:
        if application is None:
            raise InputError(
                "Expected an application or --from-study. Applications: "
                f"{', '.join(applications.names())}."
            )
        return runs.RunConfig(application)
    trial, config = search.best_config(from_study)
    if application not in (None, config.application):
        raise InputError(
            f"The study in {str(from_study)!r} is about {config.application!r}. "
            f"Received: {application!r}."
        )
    console.print(f"Settings of trial {trial}, the best in {from_study}")
    return config


def _check_same(run: Run, config: TrainingConfig) -> None:
    from mtl_keras.errors import InputError

    for name, wanted in vars(config).items():
        trained = getattr(run.config, name)
        if trained != wanted:
            raise InputError(
                f"{str(run.path)!r} is a run with another {name}: {trained!r} "
                f"there, {wanted!r} here. Name another --out, or remove it."
            )


def _print_metrics(console: Console, metrics: dict[str, dict[str, float]]) -> None:
    from mtl_keras.model.columns import MANY_TASKS
    from mtl_keras.runs.results import defined_mean

    table = plain_table("test split", "metric")
    table.add_column("value", justify="right")
    for task, values in metrics.items():
        for name, value in values.items():
            table.add_row(task, name, f"{value:.4f}")
    names = {tuple(values) for values in metrics.values()}
    if len(metrics) > MANY_TASKS and len(names) == 1:
        for name in names.pop():
            mean = defined_mean([values[name] for values in metrics.values()])
            table.add_row(f"mean of {len(metrics)}", name, f"{mean:.4f}")
    console.print(table)


@app.command(
    epilog=examples(
        "mtl-keras tune tuning/vision.toml",
        "mtl-keras tune tuning/vision.toml --workers 2",
        "mtl-keras tune tuning/vision.toml --from-trial 7 --run runs/best",
        "mtl-keras tune tuning/vision.toml --role worker --chief 10.0.0.5:7000",
    )
)
def tune(
    study: Annotated[pathlib.Path, typer.Argument(help="Study file, TOML.")],
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Study folder; else runs/study-NAME.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Run trials in this many processes of this machine."),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(help="chief or worker: be one process of a search on many."),
    ] = None,
    chief: Annotated[
        str | None, typer.Option(help="HOST:PORT of the chief, with --role.")
    ] = None,
    worker_timeout: Annotated[
        float,
        typer.Option(help="Seconds of silence after which a worker counts as dead."),
    ] = 60.0,
    from_trial: Annotated[
        str | None,
        typer.Option(help="Search nothing: train this trial of the study in full."),
    ] = None,
    run: Annotated[
        pathlib.Path | None,
        typer.Option(help="Run folder of --from-trial; else runs/APPLICATION-N."),
    ] = None,
) -> None:
    """Search for good settings, as a study file says.

    Started again, it resumes where it stopped. The folder gets every trial as
    JSON, all trials as results.csv, TensorBoard's HParams as logs/, pictures, and
    report.html.
    """
    # Trials run in processes of their own, and need the GPUs' memory there.
    tensorflow.load(gpus=from_trial is not None)
    from mtl_keras_cli import tuning

    if from_trial is None:
        tuning.tune(
            study,
            out,
            workers=workers,
            role=role,
            chief=chief,
            worker_timeout=worker_timeout,
        )
        return
    from mtl_keras import runs, search
    from mtl_keras.runs import unfinished

    console = make_console()
    search.load_study(study)
    trial, config = search.best_config(out or tuning.study_folder(study), from_trial)
    console.print(f"Training trial {trial} in full")
    settings = config.validate()
    run = run or unfinished.next_free("runs", settings)
    results = runs.train(settings, run, console=console)
    _print_metrics(console, results.metrics)
    console.print(f"Wrote {run}", soft_wrap=True)


@app.command(
    epilog=examples(
        "mtl-keras evaluate runs/vision-1",
        "mtl-keras evaluate runs/vision-1 --json > metrics.json",
    )
)
def evaluate(
    run: Annotated[pathlib.Path, typer.Argument(help="Run folder.")],
    code: Code = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table.")
    ] = False,
) -> None:
    """Evaluate a run's model on the test split again.

    A run with preferences is evaluated at the uniform one and at each task's own.
    Nothing is written.
    """
    tensorflow.load()
    from mtl_keras import runs
    from mtl_keras.encoding import encode

    _allow(code)
    loaded = runs.load_run(run)
    if loaded.config.preferences is not None:
        from mtl_keras_cli import fronts

        fronts.evaluate(loaded, as_json=as_json, console=make_console())
        return
    metrics = runs.evaluate(loaded)
    if as_json:
        print(json.dumps(encode(metrics), indent=2))
    else:
        _print_metrics(make_console(), metrics)


@app.command(
    epilog=examples(
        "mtl-keras predict runs/houses-1 new.csv",
        "mtl-keras predict runs/houses-1 new.parquet --out answers.parquet",
        "mtl-keras predict runs/houses-2 new.csv --preference 0.7,0.3",
    )
)
def predict(
    run: Annotated[pathlib.Path, typer.Argument(help="Run folder of a table.")],
    file: Annotated[
        pathlib.Path, typer.Argument(help="CSV, TSV or Parquet file with the features.")
    ],
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="File to write; else FILE.predictions beside FILE."),
    ] = None,
    preference: Annotated[
        str | None,
        typer.Option(
            help="Of a run with preferences: a number for each task, in the order of "
            "evaluate, with commas between; else all alike."
        ),
    ] = None,
    code: Code = None,
) -> None:
    """Write a run's predictions beside the rows of a file.

    Numbers are in the units of the table that the model was trained on; classes come
    with their probability.
    """
    tensorflow.load()
    from mtl_keras_cli import fronts, tables

    _allow(code)
    shares = None if preference is None else fronts.read_preference(preference)
    tables.predict(run, file, out, preference=shares, console=make_console())


@app.command(
    epilog=examples(
        "mtl-keras export runs/vision-1 --to models/vision --check",
        "mtl-keras export runs/vision-1 --to models/vision --tasks left,right",
        "mtl-keras export runs/vision-1 --to models/small --weights int8",
        "mtl-keras export runs/left runs/right --to models/both",
    )
)
def export(
    run: Annotated[
        list[pathlib.Path],
        typer.Argument(help="Run folder; several are served as one model."),
    ],
    to: Annotated[
        pathlib.Path, typer.Option(help="Folder of versions; the next one is added.")
    ],
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks to serve, with commas between them; else all."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="float32, float16 or int8; what the smaller ones cost is printed."
        ),
    ] = "float32",
    code: Code = None,
    check: Annotated[
        bool, typer.Option("--check", help="Then do what serve-check does.")
    ] = False,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Keep a version made of this very model.")
    ] = False,
) -> None:
    """Export a run's model for TensorFlow Serving.

    DIR/VERSION/ gets a SavedModel that takes raw values: one signature for all
    tasks, one for each task, one for the shared features, and those that take
    tf.train.Examples; with warm-up records and a model card. models.config and
    batching.config for tensorflow_model_server lie beside it.
    """
    tensorflow.load()
    from mtl_keras import runs

    _allow(code)
    console = make_console()
    version = runs.export(
        run,
        to,
        tasks=None if tasks is None else _split(tasks),
        weights=weights,
        reuse=reuse,
        console=console,
    )
    if check:
        serve_check(version)


@app.command(
    epilog=examples(
        "mtl-keras serve-check models/vision",
        "mtl-keras serve-check models/vision/3 --seconds 2",
    )
)
def serve_check(
    export: Annotated[
        pathlib.Path,
        typer.Argument(help="Folder of a version, or of versions: the newest."),
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference from the Keras model; else 1e-5, and more for "
            "a model of mixed precision."
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="How long to measure each; 0 for not at all.")
    ] = 0.2,
) -> None:
    """Check an export as TensorFlow Serving would load it.

    TensorFlow's loader loads it; the warm-up records run through every
    signature; the answers are compared with those of the Keras model; latency and
    throughput are measured. Exit code 1 tells of any difference.
    """
    tensorflow.load()
    from mtl_keras_cli import exporting

    exporting.check_export(
        export, tolerance=tolerance, seconds=seconds, console=make_console()
    )


app.command(epilog=examples(*comparing.EXAMPLES))(comparing.compare)
app.add_typer(datasets.app, name="datasets")
app.command()(doctor.doctor)

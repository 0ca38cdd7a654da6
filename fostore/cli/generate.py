"""`fostore generate`: stream the distributions of a model over a dataset into a store."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fostore.cli import options, target
from fostore.cli.report import INTERRUPTED, reporting, say, show
from fostore.errors import FostoreError

MODEL, STORE, RECORD = "The model", "The store", "What is recorded"

EXAMPLES = """
Examples:

`fostore generate models.py:teacher data.py:train -o train.zarr --output-mode logits`

`fostore generate timm_zoo:vit my.data:imagenet -o in.zarr --device cuda --batch-size 512 --dtype float16`

`fostore generate models.py:ensemble data.py:test -o test.h5 --class-names @names.txt --meta split=test`

Killed or interrupted? The same command goes on where it stopped.
"""


def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="module:attribute or file.py:attribute; a model, a list of models or a factory.",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="module:attribute or file.py:attribute; a dataset, a loader or a factory.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The store: .zarr, .h5, .hdf5.",
            show_default=False,
            readable=False,
        ),
    ],
    framework: Annotated[
        Literal["auto", "torch", "jax", "numpy"],
        typer.Option(
            help="Which generator; auto: by what the two objects are.", rich_help_panel=MODEL
        ),
    ] = "auto",
    factory: Annotated[
        bool | None,
        typer.Option(
            "--factory/--no-factory",
            help="MODEL is called to get the model, or is it. Default: classes, and functions without "
            "required arguments, are called.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, gpu, tpu ...", rich_help_panel=MODEL)
    ] = "cpu",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples a batch.", rich_help_panel=MODEL)
    ] = 64,
    output_mode: Annotated[
        Literal["auto", "logits", "probs"],
        typer.Option(help="What the model gives.", rich_help_panel=MODEL),
    ] = "auto",
    output_transform: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:ATTR", help="A function of the model's output.", rich_help_panel=MODEL
        ),
    ] = None,
    input_getter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:ATTR", help="A function of a sample, to its input.", rich_help_panel=MODEL
        ),
    ] = None,
    collate_fn: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:ATTR", help="Makes a batch of a list of samples.", rich_help_panel=MODEL
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="By which logits are divided.", rich_help_panel=MODEL)
    ] = 1.0,
    num_draws: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Draws of each distribution, with dropout on; they become members.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.", rich_help_panel=MODEL)] = 0,
    members: Annotated[
        bool,
        typer.Option(
            "--members",
            help="One model gives (samples, members, classes).",
            rich_help_panel=MODEL,
        ),
    ] = False,
    pad_last: Annotated[
        bool,
        typer.Option(
            "--pad-last",
            help="The model takes full batches only: a short last one is filled up.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    model_name: Annotated[
        str | None, typer.Option(help="What the metadata calls the model.", rich_help_panel=MODEL)
    ] = None,
    exists: Annotated[
        Literal["resume", "fail", "overwrite"],
        typer.Option(
            help="What to do with a store that is there: go on, refuse, or replace it when the new "
            "one is whole.",
            rich_help_panel=STORE,
        ),
    ] = "resume",
    store_as: Annotated[
        Literal["probs", "log_probs", "logits"],
        typer.Option(help="What a row holds.", rich_help_panel=STORE),
    ] = "probs",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "float64"],
        typer.Option(help="The numbers of a row.", rich_help_panel=STORE),
    ] = "float32",
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="START:STOP", help="Only these rows, to split a run.", rich_help_panel=STORE
        ),
    ] = None,
    unit_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows a unit, a power of two. Default: about 32 MiB.",
            show_default=False,
            rich_help_panel=STORE,
        ),
    ] = None,
    commit_seconds: Annotated[
        float,
        typer.Option(min=0.0, help="How much work a kill may cost.", rich_help_panel=STORE),
    ] = 1.0,
    tol: Annotated[
        float | None,
        typer.Option(
            help="How far a row's sum may be from 1. Default: from the dtype.",
            show_default=False,
            rich_help_panel=STORE,
        ),
    ] = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Metadata; the value is JSON, or text where it is not. Repeat for more.",
            rich_help_panel=RECORD,
        ),
    ] = None,
    meta_file: Annotated[
        Path | None,
        typer.Option(help="Metadata from a JSON object; --meta wins.", rich_help_panel=RECORD),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...|@FILE", help="Class names, in order.", rich_help_panel=RECORD
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            metavar="@FILE", help="One stable key a sample, one a line.", rich_help_panel=RECORD
        ),
    ] = None,
    model_fingerprint: Annotated[
        str | None,
        typer.Option(help="Stands for a model that cannot be hashed.", rich_help_panel=RECORD),
    ] = None,
    dataset_fingerprint: Annotated[
        str | None,
        typer.Option(help="Stands for data that cannot be hashed.", rich_help_panel=RECORD),
    ] = None,
    accept_differences: Annotated[
        bool,
        typer.Option(
            "--accept-differences",
            help="Go on although model or dataset differ; recorded in the metadata.",
            rich_help_panel=RECORD,
        ),
    ] = False,
    recheck: Annotated[
        bool,
        typer.Option(
            "--recheck/--no-recheck",
            help="Compute a committed batch again before going on with a store; without it, code that "
            "differs is refused.",
            rich_help_panel=RECORD,
        ),
    ] = True,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress",
            help="A progress bar. Default: where stderr is a terminal.",
            show_default=False,
        ),
    ] = None,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    """Stream the distributions of MODEL over DATASET into a store; a killed run goes on.

    The current folder is importable. The named code is imported and run: name only code you trust.
    """
    with reporting(with_traceback=traceback), _resumable(output, exists), _warnings_as_lines():
        named_meta = options.parse_meta(meta or (), meta_file)
        names, keys = options.parse_names(class_names), options.parse_ids(ids)
        row_range = options.parse_rows(rows)
        the_model = target.model_of(target.load(model, "MODEL"), model, factory)
        the_dataset = target.dataset_of(target.load(dataset, "DATASET"), dataset)
        chosen = target.framework_of(the_model, the_dataset) if framework == "auto" else framework
        generator = target.generator_of(chosen)(
            the_model,
            device=device,
            batch_size=batch_size,
            output_mode=output_mode,
            output_transform=_function(output_transform, "--output-transform"),
            input_getter=_function(input_getter, "--input-getter"),
            model_name=model_name,
            members=members,
        )
        store = generator.generate_distributions(
            the_dataset,
            progress=sys.stderr.isatty() if progress is None else progress,
            store=output,
            exists=exists,
            store_as=store_as,
            dtype=dtype,
            meta=named_meta,
            class_names=names,
            ids=keys,
            rows=row_range,
            unit_rows=unit_rows,
            commit_seconds=commit_seconds,
            tol=tol,
            collate_fn=_function(collate_fn, "--collate-fn"),
            temperature=temperature,
            pad_last=pad_last,
            model_fingerprint=model_fingerprint,
            dataset_fingerprint=dataset_fingerprint,
            accept_differences=accept_differences,
            num_draws=num_draws,
            seed=seed,
            recheck=recheck,
        )
        show(summary(store))


def _function(text: str | None, option: str) -> Any:
    return None if text is None else target.load(text, option)


def summary(store: Any) -> str:
    """One line that says what is in a store."""
    schema = store.schema
    per_row = f"{schema.num_classes:,} classes"
    if schema.num_members is not None:
        per_row = f"{schema.num_members} members x {per_row}"
    planned = store.num_samples
    count = f"{len(store):,}" if planned in (None, len(store)) else f"{len(store):,} of {planned:,}"
    state = f"sealed, digest {store.header.digest}" if store.is_sealed else "not finished"
    return f"{store.path}: {count} rows of {per_row}, {schema.kind} {schema.dtype}, {state}"


@contextmanager
def _resumable(output: Path, exists: str) -> Iterator[None]:
    """Say what stands in the store, and how to go on, when the user interrupts the block."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: {_what_stands(output, exists)}")
        raise typer.Exit(INTERRUPTED) from None


def _what_stands(output: Path, exists: str) -> str:
    if exists == "overwrite":
        return f"what was at {output} before is untouched; run the same command to start again"
    try:
        import fostore

        store = fostore.open(output)
    except (FostoreError, OSError):
        return "nothing was written"
    how = (
        "run the same command" + (" with --exists resume" if exists == "fail" else "") + " to go on"
    )
    planned = "" if store.num_samples is None else f" of {store.num_samples:,}"
    return f"{len(store):,}{planned} rows of {output} are committed; {how}"


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show warnings as lines of their own, without the place in the code that gave them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield

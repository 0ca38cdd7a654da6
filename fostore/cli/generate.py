"""`fostore generate`: stream the distributions of a model over a dataset into a store."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fostore.cli import options, target
from fostore.cli.options import Option
from fostore.cli.report import INTERRUPTED, reporting, say, show
from fostore.errors import FostoreError
from fostore.generate.frameworks import framework_of, generator_of
from fostore.generate.options import Options
from fostore.writing.shares import share_of

MODEL, STORE, RECORD = "The model", "The store", "What is recorded"

EXAMPLES = """
Examples:

`fostore generate models.py:teacher data.py:train -o train.zarr --output-mode logits`

`fostore generate timm_zoo:vit my.data:imagenet -o in.zarr --device cuda --batch-size 512 --dtype float16`

`fostore generate models.py:teacher data.py:train -o s3://bucket/train.zarr --shard 3/64`

`fostore generate models.py:ensemble data.py:test -o test.h5 --class-names @names.txt --meta split=test`

`fostore generate llm.py:teacher llm.py:texts -o t.zarr --rows tokens --tokenizer llm.py:tok --encoding topk --k 64`

Killed or interrupted? The same command goes on where it stopped.
"""


def _named(panel: str, help: str, name: str) -> Option:
    return Option(
        panel,
        help,
        "NAME:ATTR",
        parse=lambda text: None if text is None else target.load(text, name),
    )


_OPTIONS = {
    "device": Option(MODEL, "cpu, cuda, cuda:1, gpu, tpu ..."),
    "batch_size": Option(MODEL, "Samples a batch.", least=1),
    "output_mode": Option(MODEL, "What the model gives."),
    "output_transform": _named(MODEL, "A function of the model's output.", "--output-transform"),
    "input_getter": _named(MODEL, "A function of a sample, to its input.", "--input-getter"),
    "collate_fn": _named(MODEL, "Makes a batch of a list of samples.", "--collate-fn"),
    "tokenizer": _named(MODEL, "Makes sequences of texts, where a row is a token.", "--tokenizer"),
    "temperature": Option(MODEL, "By which logits are divided."),
    "num_draws": Option(
        MODEL, "Draws of each distribution, with dropout on; they become members.", least=1
    ),
    "seed": Option(MODEL, "Of the draws."),
    "members": Option(MODEL, "One model gives (samples, members, classes)."),
    "pad_last": Option(MODEL, "The model takes full batches only: a short last one is filled up."),
    "model_name": Option(MODEL, "What the metadata calls the model."),
    "exists": Option(
        STORE,
        "What to do with a store that is there: go on, refuse, or replace it when the new one is "
        "whole.",
    ),
    "store_as": Option(STORE, "What a row holds."),
    "dtype": Option(STORE, "The numbers of a row."),
    "rows": Option(
        STORE,
        "Only these rows, to split a run; or what a row is of a language model: a token, or one whose next "
        "token has a label.",
        "START:STOP|tokens|labelled",
        parse=options.parse_rows,
    ),
    **options.of_encoding(STORE, "the store is not sealed"),
    "shard": Option(
        STORE,
        "Make one of N shares of the store, counted from 0, beside others; auto: as torchrun, srun or an array of "
        "SLURM jobs say. Who ends last finishes it.",
        "I/N|auto",
        parse=share_of,
    ),
    "unit_rows": Option(STORE, "Rows a unit, a power of two. Default: about 32 MiB.", least=1),
    "commit_seconds": Option(STORE, "How much work a kill may cost.", least=0.0),
    "tol": Option(STORE, "How far a row's sum may be from 1. Default: from the dtype."),
    "class_names": Option(
        RECORD, "Class names, in order.", "A,B,...|@FILE", parse=options.parse_names
    ),
    "ids": Option(RECORD, "One stable key a sample, one a line.", "@FILE", parse=options.parse_ids),
    "model_fingerprint": Option(RECORD, "Stands for a model that cannot be hashed."),
    "dataset_fingerprint": Option(RECORD, "Stands for data that cannot be hashed."),
    "accept_differences": Option(
        RECORD, "Go on although model or dataset differ; recorded in the metadata."
    ),
    "keep_labels": Option(
        RECORD, "Keep the class of each sample beside its row, so that `stats` needs no --labels."
    ),
    "recheck": Option(
        RECORD,
        "Compute a committed batch again before going on with a store; without it, code that differs "
        "is refused.",
    ),
}


def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="module:attribute or file.py:attribute; a model, a list of models or a factory.",
        ),
    ],
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="module:attribute or file.py:attribute; a dataset, a loader or a factory.",
        ),
    ],
    *,
    output: Annotated[  # text: a `Path` makes one slash of the two in a url
        str,
        typer.Option("--output", "-o", metavar="PATH", help="The store: .zarr, .h5, .hdf5; s3://."),
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
            help="MODEL is called to get the model, or is it. Default: classes, and functions without "
            "required arguments, are called.",
            rich_help_panel=MODEL,
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
    progress: Annotated[
        bool,
        typer.Option(help="A progress bar; where stderr is no terminal, a line every ten seconds."),
    ] = True,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
    **given: Any,
) -> None:
    """Stream the distributions of MODEL over DATASET into a store; a killed run goes on.

    The current folder is importable. The named code is imported and run: name only code you trust.
    """
    with reporting(with_traceback=traceback), _resumable(output, given["exists"]):
        asked = options.parsed(given, _OPTIONS)
        asked["meta"] = options.parse_meta(meta or (), meta_file)
        the_model = target.model_of(target.load(model, "MODEL"), model, factory)
        the_dataset = target.dataset_of(target.load(dataset, "DATASET"), dataset)
        chosen = framework_of(the_model, the_dataset) if framework == "auto" else framework
        generator_type = generator_of(chosen)
        # the rest of the options is of the call
        of_generator = inspect.signature(generator_type).parameters
        generator = generator_type(
            the_model, **{name: asked.pop(name) for name in [*asked] if name in of_generator}
        )
        if asked["shard"] is not None:
            say(f"{asked['shard']} of {output}")
        store = generator.generate_distributions(
            the_dataset,
            progress,
            store=output,
            **asked,
        )
        show(summary(store))


options.give(generate, Options, _OPTIONS, before="meta")


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
def _resumable(output: str, exists: str) -> Iterator[None]:
    """Say what stands in the store, and how to go on, when the user interrupts the block."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: {_what_stands(output, exists)}")
        raise typer.Exit(INTERRUPTED) from None


def _what_stands(output: str, exists: str) -> str:
    if exists == "overwrite":
        return f"what was at {output} before is untouched; run the same command to start again"
    try:
        import fostore  # loads NumPy: only where there is something to say

        store = fostore.open(output)
    except (FostoreError, OSError):
        return "nothing was written"
    how = (
        "run the same command" + (" with --exists resume" if exists == "fail" else "") + " to go on"
    )
    planned = "" if store.num_samples is None else f" of {store.num_samples:,}"
    return f"{len(store):,}{planned} rows of {output} are committed; {how}"

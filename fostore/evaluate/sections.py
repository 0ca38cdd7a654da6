"""The sections of a report: what each says, as HTML; a section that has nothing to say is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fostore.encodings.fidelity import figures_of
from fostore.evaluate import tables
from fostore.evaluate.label_sets import LabelSets
from fostore.evaluate.metrics import Metrics
from fostore.evaluate.summary import Confusion, Summary
from fostore.reading.selection import Stored
from fostore.reading.store import Store
from fostore.schema.ranges import describe
from fostore.schema.row import Schema
from fostore.schema.shown import brief, counted, escaped, flat

_CLASSES = 12
"""Classes that a table shows whole; of more, the ends."""
_FACTS = 60
"""Entries of identity and metadata."""
_FINDINGS = 20
_LEVELS = (0.8, 0.9, 0.95, 0.99)
_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
"""A number is rounded by at most 2^-bits of itself."""
_FIDELITY = {
    "rows": "num_rows",
    "KL, mean": "kl_mean",
    "KL, most": "kl_max",
    "TV, mean": "tv_mean",
    "TV, most": "tv_max",
    "missing mass, mean": "missing_mass_mean",
    "missing mass, most": "missing_mass_max",
    "another most probable class": "argmax_flips",
    "row that loses most": "worst_row",
}
"""What is said of `Figures`, by how it is said."""
_CHECKED = {
    "structure": "The files were checked to be whole. Rows and checksums were not: fostore verify does.",
    "checksums": "Every row was read and has the checksum that was written with it.",
    "full": "Every row was read, has its checksum, and is a distribution.",
}


def sections(
    summary: Summary, stored: Stored | None, level: str, drawn: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Titles and contents; the first is the head of the page.

    Args:
        stored: where the rows lie, if in a store.
        level: of the check of a store.
        drawn: pictures by name.
    """
    store = stored if isinstance(stored, Store) else None
    findings = [] if store is None else store.verify(level=level)
    yield "", _head(summary, store, bool([f for f in findings if f.severity == "damage"]))
    yield "What it is", _what(summary, stored)
    if store is not None:
        yield "Integrity and completeness", _integrity(store, findings, level)
    if stored is not None:
        yield "Fidelity", _fidelity(stored)
    yield "Uncertainty", _uncertainty(summary, drawn)
    if summary.num_members is not None:
        yield "Disagreement of the members", _members(summary, drawn)
    yield "Classes", _classes(summary)
    if summary.metrics is not None and summary.confusion is not None:
        yield "Against the labels", _labels(summary, summary.metrics, summary.confusion, drawn)
    if summary.label_sets is not None:
        yield "Coverage against width", _sets(summary, summary.label_sets, drawn)
    if "ternary" in drawn:
        by = "predicted class" if summary.point_labels is None else "label"
        caption = f"Each sample nearer to a corner is surer of that class; coloured by {by}."
        yield "Distributions over three classes", tables.figure("ternary", drawn, caption)
    yield "Most uncertain samples", _most_uncertain(summary)
    if stored is not None:
        yield "Provenance", _provenance(stored)
        yield "How to open it", _opening(stored)


def _head(summary: Summary, store: Store | None, is_damaged: bool) -> str:
    of = f", each by {summary.num_members} members" if summary.num_members else ""
    classes, samples = counted(summary.num_classes, "class"), counted(summary.num_samples, "sample")
    lead = f"One distribution over {classes} for each of {samples}{of}."
    badges = []
    if store is not None:
        sealed = ("good", "sealed") if store.is_sealed else ("bad", "not finished")
        whole = ("bad", "damaged") if is_damaged else ("good", "whole")
        badges = [f'<span class="badge {kind}">{word}</span>' for kind, word in (sealed, whole)]
    tiles = {
        "samples": f"{summary.num_samples:,}",
        "classes": f"{summary.num_classes:,}",
        "members": summary.num_members and f"{summary.num_members:,}",
        "mean entropy": brief(summary.entropy.mean),
        "mean confidence": brief(summary.confidence.mean),
        "accuracy": summary.metrics and f"{summary.metrics.accuracy:.2%}",
        "calibration error": summary.metrics and brief(summary.metrics.ece),
    }
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items() if value
    )
    return f'<p class="lead">{lead}</p>\n<p>{"".join(badges)}</p>\n<dl class="tiles">{shown}</dl>'


def _what(summary: Summary, stored: Stored | None) -> str:
    facts: dict[str, Any] = {"samples": summary.num_samples, "classes": summary.num_classes}
    if summary.num_members is not None:
        facts["members"] = summary.num_members
    if summary.class_names:
        names = [brief(name, 40) for name in summary.class_names[:_CLASSES]]
        more = len(summary.class_names) - len(names)
        facts["class names"] = ", ".join(names) + (f" and {more:,} more" if more else "")
    if summary.rule is not None:
        facts["classes that are not kept"] = f"as the rule {summary.rule!r} has them"
    if stored is not None:
        schema = stored.schema
        facts |= {
            "stored as": f"{schema.kind}, {schema.dtype}, encoding {schema.encoded}",
            "temperature": schema.temperature,
            "columns": ", ".join(f"{column.name} ({column.role})" for column in schema.columns),
            "format": f"{stored.store.format}, version {stored.header.version}",
        }
    return tables.facts(facts.items())


def _integrity(store: Store, findings: Sequence[Any], level: str) -> str:
    header = store.header
    planned = "an open end" if header.num_samples is None else f"{header.num_samples:,}"
    missing = store.missing()
    facts: dict[str, Any] = {
        "rows": f"{len(store):,} committed of {planned}",
        "missing": describe(missing) if missing else "none",
        "state": "sealed: whole, and its digest is recorded" if store.is_sealed else "not finished",
        "digest": header.digest or "none until the store is sealed",
        "blocks": f"{header.block_rows:,} rows, each block with a hash of its own",
    }
    checked = f"<p>{_CHECKED[level]}</p>" if not findings else ""
    rows = [(f.severity, f.where, f.message) for f in findings[:_FINDINGS]]
    if findings:
        checked = tables.table(
            ("finding", "where", "what"), rows, f"{len(findings):,} findings", "words"
        )
    return tables.facts(facts.items()) + checked


def _fidelity(stored: Stored) -> str:
    figures = figures_of(stored.header.fidelity)
    if not figures:
        return f"<p>{escaped(rounding(stored.schema))}</p>"
    words = (
        "<p>How far the rows that are stored are from those that came, as far as it is known: KL in nats, "
        "total variation, the probability of classes that are not kept (by the rule coarse they are one outcome), "
        "and how often the most probable class is another one.</p>"
    )
    lines = []
    for label, name in _FIDELITY.items():
        values = [getattr(each, name) for each in figures.values()]
        if any(value is not None for value in values):
            lines.append((label, *("" if value is None else brief(value) for value in values)))
    return words + tables.table(("", *figures), lines, "")


def rounding(schema: Schema) -> str:
    """How far a number that is stored by itself may be from the one that the model gave."""
    bits = _BITS.get(schema.dtype)
    if bits is None:
        return f"The numbers are {schema.dtype}, and exact."
    return (
        f"Each number is the model's {schema.kind}, rounded to {schema.dtype}: off by at most 2^-{bits} of itself, "
        "and by nothing where the model computes in this type or a narrower one."
    )


def _uncertainty(summary: Summary, drawn: Mapping[str, str]) -> str:
    most = f"at most ln {summary.num_classes:,} = {math.log(summary.num_classes):.4g} nats"
    entropy = f"Entropies of the samples: 0 is certain, {most}."
    sure = "The largest probability of each sample."
    figures = tables.figure("entropy", drawn, entropy) + tables.figure("confidence", drawn, sure)
    named = {"entropy, nats": summary.entropy, "confidence": summary.confidence}
    missing = "" if drawn else '<p class="note">Pictures need matplotlib: the extra "plot".</p>'
    return f'<div class="pictures">{figures}</div>\n{tables.moments(named)}{missing}'


def _members(summary: Summary, drawn: Mapping[str, str]) -> str:
    words = (
        "<p>The total uncertainty of a sample is the entropy of its members' average. What the members "
        "are uncertain about themselves is aleatoric, what they disagree about is epistemic.</p>"
    )
    caption = "Samples by what members are unsure of themselves, and by what they disagree about."
    named = {"total, nats": summary.entropy, "aleatoric, nats": summary.aleatoric}
    named["epistemic, nats"] = summary.epistemic
    return words + tables.figure("uncertainty", drawn, caption) + tables.moments(named)


def _classes(summary: Summary) -> str:
    order = (-summary.predicted).argsort(kind="stable").tolist()
    caption = "Samples of which a class is the most probable one, and its average probability."
    if summary.num_classes <= 2 * _CLASSES:
        order.sort()
        shown: list[int | None] = list(order)
    else:
        shown = [*order[:_CLASSES], None, *order[-_CLASSES:]]
        caption += f" The {_CLASSES} most and the {_CLASSES} least frequent."
    largest = max(int(summary.predicted.max()), 1)
    labelled = summary.confusion
    heads = ["class", "predicted", "share", "mean probability"]
    heads += ["labels", "right"] if labelled is not None else []
    lines = []
    for k in shown:
        if k is None:
            more = f"and {summary.num_classes - 2 * _CLASSES:,} more"
            lines.append(f'<tr><th scope="row" colspan="{len(heads) + 1}">{more}</th></tr>')
            continue
        count = int(summary.predicted[k])
        share = count / summary.num_samples
        cells = [f"{count:,}", f"{share:.1%}", brief(float(summary.mean_probs[k]))]
        if labelled is not None:
            of, right = int(labelled.label_count[k]), int(labelled.right[k])
            cells += [f"{of:,}", f"{right / of:.1%}" if of else "none"]
        bar = f'<span class="bar" style="width:{100 * count / largest:.1f}%"></span>'
        lines.append(tables.row(_class(summary, k), cells, f'<td class="bars">{bar}</td>'))
    return tables.framed(heads, lines, caption, last='<td class="bars"></td>')


def _labels(
    summary: Summary, metrics: Metrics, confusion: Confusion, drawn: Mapping[str, str]
) -> str:
    facts: dict[str, Any] = {
        "accuracy": f"{metrics.accuracy:.4f}",
        "NLL": f"{metrics.nll:.4g} nats",
        "Brier score": f"{metrics.brier:.4g}, of 0 to 2",
        "ECE": f"{metrics.ece:.4g}, of {len(metrics.reliability.count)} bins",
        "classwise ECE": f"{metrics.classwise_ece:.4g}",
    }
    if metrics.num_impossible:
        facts["impossible"] = f"{metrics.num_impossible:,} labels have the probability 0"
    caption = "Accuracy of samples of like confidence: on the diagonal, a share of p of those that are p sure is right."
    content = tables.facts(facts.items()) + tables.figure("reliability", drawn, caption)
    if confusion.matrix is None:
        return (
            content
            + '<p class="note">Of more than 1,000 classes, mistakes are not counted in pairs.</p>'
        )
    if summary.num_classes <= _CLASSES:
        content += f"<h3>Confusion</h3>{_confusion(summary, confusion.matrix)}"
    worst = confusion.worst(_CLASSES)
    if worst:
        pairs = [
            (_class(summary, label), _class(summary, predicted), f"{count:,}")
            for label, predicted, count in worst
        ]
        content += "<h3>Most frequent mistakes</h3>"
        content += tables.table(("label", "most probable", "samples"), pairs, "", "words")
    return content


def _sets(summary: Summary, sets: LabelSets, drawn: Mapping[str, str]) -> str:
    words = (
        "<p>A set of classes that holds the label more often is the better one only if it is not much wider. "
        "A ball of total variation around each prediction holds the classes that are likely enough.</p>"
    )
    own = "" if sets.left_open is None else " The cross: what the members leave open."
    caption = (
        f"How often balls of one radius hold the label of a new sample, and how many classes.{own}"
    )
    balls = [(level, sets.ball(level)) for level in _LEVELS]
    rows = [(f"{level:.0%}", brief(ball[0]), brief(ball[1])) for level, ball in balls if ball]
    if len(rows) < len(_LEVELS):
        words += f'<p class="note">{summary.num_samples:,} samples promise no more.</p>'
    promise = "Calibrated on these samples: the promise is of other samples like them."
    content = words + tables.figure("sets", drawn, caption)
    if rows:
        content += tables.table(
            ("label is held, at least", "radius", "classes, mean"), rows, promise
        )
    if sets.left_open is None:
        return content
    lines = [
        (
            f"{least:,}" if least == most else f"{least:,} to {most:,}",
            f"{covered.num_samples:,}",
            f"{covered:.1%}",
            f"{covered.low:.1%} to {covered.high:.1%}",
        )
        for least, most, covered in sets.by_width()
    ]
    caption = (
        f"A class is left open unless all members give another more than any of them gives it: {sets.mean_open:.3g} "
        f"classes on average, and for {sets.covered:.1%} of the samples the label is among them."
    )
    heads = ("classes left open", "samples", "label among them", "95 % interval")
    return f"{content}<h3>What the members leave open</h3>{tables.table(heads, lines, caption)}"


def _confusion(summary: Summary, matrix: Any) -> str:
    names = [_class(summary, k) for k in range(summary.num_classes)]
    lines = []
    for name, counts in zip(names, matrix.tolist(), strict=True):
        total = max(sum(counts), 1)
        # At most 45 %, so that ink on it can be read in either mode.
        cells = "".join(
            f'<td style="background:rgba(var(--heat),{0.45 * count / total:.2f})">{count:,}</td>'
            for count in counts
        )
        lines.append(f'<tr><th scope="row"><bdi>{escaped(name)}</bdi></th>{cells}</tr>')
    caption = "Labels down, most probable classes across; shades are shares of a row."
    return tables.framed(("", *names), lines, caption, "confusion")


def _most_uncertain(summary: Summary) -> str:
    has_ids = any(sample.id is not None for sample in summary.most_uncertain)
    has_labels = any(sample.label is not None for sample in summary.most_uncertain)
    heads = ["index", *["id"] * has_ids, "entropy, nats", "most probable", "its probability"]
    rows = [
        (
            f"{sample.index}",
            *[brief(str(sample.id), 60)] * has_ids,
            brief(sample.entropy),
            _class(summary, sample.predicted),
            brief(sample.confidence),
            *([_class(summary, sample.label)] if sample.label is not None else []),
        )
        for sample in summary.most_uncertain
    ]
    return tables.table(
        (*heads, *["label"] * has_labels), rows, "The first to look at, or to label.", "words"
    )


def _provenance(stored: Stored) -> str:
    header = stored.header
    facts: dict[str, Mapping[str, Any]] = {
        "made by": {name: version for name, version in header.software.items() if version},
        "identity": header.identity,
        "metadata": header.meta,
    }
    content = tables.facts(
        (("created", header.created), ("updated", header.updated), ("id of the store", header.id))
    )
    for title, values in facts.items():
        pairs = [(key, value) for key, value in flat(values) if value is not None]
        if pairs:
            content += f"<h3>{title.capitalize()}</h3>{tables.facts(pairs[:_FACTS])}"
        if len(pairs) > _FACTS:
            content += f'<p class="note">and {len(pairs) - _FACTS:,} more: fostore info --json</p>'
    return content


def _opening(stored: Stored) -> str:
    store, schema = stored.store, stored.schema
    name, column = repr(Path(str(store.path)).name), repr(schema.columns[0].name)
    blocks = {
        "Mapped and not loaded": f"import fostore\n\nstore = fostore.open({name})\n"
        "row = store[0]                 # one distribution\nrows = store.take([2, 0, 1])   # a batch, in this order",
        "Beside its dataset, in PyTorch": f"from fostore.torch import output_dataloader\n\n"
        f"loader = output_dataloader(dataset, {name}, batch_size=128, shuffle=True)",
        "The same in JAX": f"from fostore.jax import output_dataloader\n\n"
        f"loader = output_dataloader(dataset, {name}, batch_size=128, shuffle=True)",
        "Without fostore": plain_code(store.format, name, column),
    }
    return "\n".join(
        f'<h3>{title}</h3>\n<pre tabindex="0"><code>{escaped(code)}</code></pre>'.replace(
            "\\u000a", "\n"
        )
        for title, code in blocks.items()
    )


def plain_code(format: str, path: str, column: str) -> str:
    """How the first rows of a store are read without fostore; path and column as they stand in the code."""
    codes = {
        "zarr": f'import zarr\n\nrows = zarr.open({path}, mode="r")[{column}][:3]',
        "hdf5": f"import h5py\n\nwith h5py.File({path}) as file:\n    rows = file[{column}][:3]",
        "json": f"import json\n\nwith open({path}) as file:\n"
        '    kept = json.load(file)["distributions"]\n\nrows = [kept[str(i)] for i in range(3)]',
    }
    return codes[format]


def _class(summary: Summary, k: int) -> str:
    return brief(summary.class_names[k], 40) if summary.class_names else f"class {k}"

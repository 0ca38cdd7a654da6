"""What a distillation loss needs beside the student's logits, and how far its gradient is from dense autograd's.

Each figure of memory is a process of its own: the highest resident memory of one step (forward and
back), above that with the logits and the teacher's rows in place. The dense loss sees the teacher's
logits; the others see 64 of them and the weight of the rest. Gradients are compared in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _bench
import torch

from fostore.encodings.topk_rows import TopK
from fostore.torch import as_topk, distillation_loss, select_topk, topk_distillation_loss

K = 64
MEMORY_GOAL, GRADIENT_GOAL = 2.2, 1e-12
CASES = {
    "dense": ("dense", 1.0, False),
    "coarse": ("coarse", 1.0, False),
    "coarse, T = 2": ("coarse", 2.0, False),
    "uniform": ("uniform", 1.0, False),
    "renorm": ("renorm", 1.0, False),
    "zero": ("zero", 1.0, False),
    "coarse, reverse": ("coarse", 1.0, True),
    "uniform, reverse": ("uniform", 1.0, True),
}


def rows_of(logits: torch.Tensor) -> TopK:
    """The teacher's rows, as a store of top-k rows gives them."""
    one = select_topk(logits, K, (2.0,))
    return as_topk(
        TopK(
            one.values,
            one.ids,
            one.residual.to(one.values),
            logits.shape[-1],
            temperatures=(2.0,),
            residual_t=one.residual_t.to(one.values),
        )
    )


def loss_of(case: str, student: torch.Tensor, teacher: Any) -> torch.Tensor:
    """The loss of a case; the dense one sees logits."""
    rule, temperature, reverse = CASES[case]
    if rule == "dense":
        return distillation_loss(student, teacher, temperature, teacher_kind="logits")
    return topk_distillation_loss(student, teacher, temperature, rule=rule, reverse=reverse)


# ---------------------------------------------------------------- in the child


def _highest() -> int:
    """The highest resident memory of this process since it was last asked to forget it, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not say the highest resident memory of a process")


def child(case: str, num_rows: int, num_classes: int, dtype: str) -> None:
    """Print, as JSON, the memory of a step in times of the logits, and the milliseconds of the fastest of four."""
    torch.manual_seed(0)
    student = torch.randn(num_rows, num_classes, dtype=getattr(torch, dtype), requires_grad=True)
    teacher: Any = torch.randn(num_rows, num_classes)
    if case != "dense":
        teacher = rows_of(teacher)
    few = torch.randn(2, num_classes, requires_grad=True)
    loss_of(case, few, teacher[:2]).backward()  # what the library takes for itself
    Path("/proc/self/clear_refs").write_text("5")
    before = _highest()
    loss_of(case, student, teacher).backward()
    highest = _highest() - before
    times = []
    for _ in range(4):
        student.grad = None
        begin = time.perf_counter()
        loss_of(case, student, teacher).backward()
        times.append(time.perf_counter() - begin)
    print(json.dumps([highest / student.nbytes, min(times) * 1e3]))


# ---------------------------------------------------------------- the tables


def measured(case: str, num_rows: int, num_classes: int, dtype: str) -> tuple[float, float]:
    """The figures of `child`."""
    command = [sys.executable, __file__, "--child", case, str(num_rows), str(num_classes), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    memory, milliseconds = json.loads(done.stdout)
    return memory, milliseconds


def gradient_error(case: str) -> float:
    """The largest difference from the gradient of autograd over all classes, in float64."""
    torch.manual_seed(1)
    teacher = torch.randn(8, 2000, dtype=torch.float64) * 3
    logits = teacher + torch.randn_like(teacher) * 2
    rule, temperature, reverse = CASES[case]
    topk = rows_of(teacher)
    student, same = (logits.clone().requires_grad_() for _ in range(2))
    loss_of(case, student, topk).backward()
    log_q = torch.log_softmax(same / temperature, -1)
    is_kept = torch.zeros(log_q.shape, dtype=torch.bool).scatter(-1, topk.ids, True)
    log_p = torch.log_softmax(teacher / temperature, -1)
    kept_p, kept_q = log_p.gather(-1, topk.ids), log_q.gather(-1, topk.ids)
    rest_p, rest_q = (x.masked_fill(is_kept, -math.inf).logsumexp(-1) for x in (log_p, log_q))
    if rule == "coarse":
        log_p, log_q = (
            torch.cat([kept, rest[:, None]], -1)
            for kept, rest in ((kept_p, rest_p), (kept_q, rest_q))
        )
    elif rule == "uniform":
        each = (rest_p - math.log(log_q.shape[-1] - K))[:, None].expand(log_q.shape)
        log_p = each.scatter(-1, topk.ids, kept_p)
    else:
        log_p, log_q = kept_p, kept_q
        if rule == "renorm":
            log_p = torch.log_softmax(log_p, -1)
    one, other = (log_q, log_p) if reverse else (log_p, log_q)
    expected = (one.exp() * (one - other)).sum(-1).mean() * temperature**2
    expected.backward()
    assert student.grad is not None
    assert same.grad is not None
    return float((student.grad - same.grad).abs().max())


def main() -> None:
    """Measure, print, and without --quick record."""
    options = _bench.parser(__doc__ or "", rounds=3)
    options.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = _bench.parse(options)
    if arguments.child is not None:
        case, num_rows, num_classes, dtype = arguments.child
        child(case, int(num_rows), int(num_classes), dtype)
        return
    num_rows, num_classes = (64, 32_000) if arguments.quick else (512, 128_256)
    kinds = [(case, "float32") for case in CASES] + [("coarse", "bfloat16")]
    figures = _bench.interleave(
        {
            f"{case} {dtype}": lambda case=case, dtype=dtype: measured(  # type: ignore[misc]
                case, num_rows, num_classes, dtype
            )
            for case, dtype in kinds
        },
        arguments.rounds,
        warmups=0,
    )
    dense = [milliseconds for _, milliseconds in figures["dense float32"]]
    lines = []
    for case, dtype in kinds:
        values = figures[f"{case} {dtype}"]
        memory = _bench.Spread.of([one for one, _ in values])
        times = _bench.ratio([milliseconds for _, milliseconds in values], dense)
        is_dense = case == "dense"
        error = None if is_dense else gradient_error(case)
        if error is not None and error > GRADIENT_GOAL:
            raise SystemExit(f"{case}: the gradient is off by {error:.1e}")
        lines.append(
            [
                case if dtype == "float32" else f"{case}, {dtype}",
                memory.text(2),
                "" if is_dense else f"{MEMORY_GOAL} at most",
                "" if is_dense else _bench.verdict(memory.median <= MEMORY_GOAL),
                times.text(2),
                "" if error is None or dtype != "float32" else f"{error:.0e}",
            ]
        )
    headers = ["loss", "memory, of the logits'", "goal", "", "time, of dense", "gradient off by"]
    _bench.report(
        "Losses of top-k rows",
        [
            _bench.machine(arguments.dir, ["torch"]),
            f"One step over {num_rows:,} rows of {num_classes:,} classes, k = {K}, on one thread; gradients in "
            f"float64, at most {GRADIENT_GOAL:g} from dense autograd:",
            _bench.table(headers, lines),
        ],
        record=not arguments.quick,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

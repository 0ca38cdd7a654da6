"""Evaluation: uncertainty, divergence, credal sets, calibration and selection, over rows of any number.

Every function takes distributions as a `Store`, a `Selection`, the path of a store or file, a mapping
of dataset indices, or an array of (N, K) or (N, M, K), and reads them once, piece by piece: memory
does not grow with the number of samples, but for the numbers that are returned. Rows are renormalised
in float64; of top-k rows `by_rule` says what the classes have that are not kept. Entropies and
divergences are in nats; a higher score is a more uncertain sample.

What cannot be added up afterwards comes as an accumulator with `update`, `merge` and `result`: ranks
accumulate their part and merge, and the result is the same, bit by bit, as that of one pass.
"""

from __future__ import annotations

from fostore.evaluate.calibration import (
    Calibration,
    ClasswiseCalibration,
    Reliability,
    classwise_ece,
    ece,
    reliability,
)
from fostore.evaluate.conformal import conformal_radius, split
from fostore.evaluate.covered import Ball, Coverage, Hull, Interval, compute_coverage, coverage
from fostore.evaluate.credal import (
    hull_covered,
    interval,
    interval_covered,
    interval_width,
    tv_ball_covered,
)
from fostore.evaluate.divergence import js, kl, tv
from fostore.evaluate.html import report
from fostore.evaluate.human import HumanMetrics, human_metrics
from fostore.evaluate.metrics import Labelled, Metrics, accuracy, brier, label_metrics, nll
from fostore.evaluate.selecting import Top, select_uncertain_samples
from fostore.evaluate.sources import by_rule
from fostore.evaluate.summary import Comparison, Summary, compare, summarize
from fostore.evaluate.sums import Mean, Moments
from fostore.evaluate.uncertainty import (
    Uncertainty,
    compute_prediction_entropy,
    ensemble_uncertainty,
    entropy,
    least_confidence,
    margin,
)

__all__ = [
    "Ball",
    "Calibration",
    "ClasswiseCalibration",
    "Comparison",
    "Coverage",
    "Hull",
    "HumanMetrics",
    "Interval",
    "Labelled",
    "Mean",
    "Metrics",
    "Moments",
    "Reliability",
    "Summary",
    "Top",
    "Uncertainty",
    "accuracy",
    "brier",
    "by_rule",
    "classwise_ece",
    "compare",
    "compute_coverage",
    "compute_prediction_entropy",
    "conformal_radius",
    "coverage",
    "ece",
    "ensemble_uncertainty",
    "entropy",
    "hull_covered",
    "human_metrics",
    "interval",
    "interval_covered",
    "interval_width",
    "js",
    "kl",
    "label_metrics",
    "least_confidence",
    "margin",
    "nll",
    "reliability",
    "report",
    "select_uncertain_samples",
    "split",
    "summarize",
    "tv",
    "tv_ball_covered",
]

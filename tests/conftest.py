"""The Hypothesis profiles of the suite: dev (few examples), ci (derandomised), nightly (many)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Examples touch the disk on shared machines, so a time limit on one of them measures the machine.
_UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("dev", max_examples=15, **_UNTIMED)
settings.register_profile("ci", max_examples=40, derandomize=True, print_blob=True, **_UNTIMED)
settings.register_profile("nightly", max_examples=2000, stateful_step_count=100, **_UNTIMED)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)

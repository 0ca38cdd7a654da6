"""The Hypothesis profiles of the suite, dev (few examples), ci (derandomised) and nightly (many); and its fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from browser import Browser
from fostore import disk
from sides import SIDES, Side
from support import SUFFIXES

# Examples touch the disk on shared machines, so a time limit on one of them measures the machine.
_UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("dev", max_examples=15, **_UNTIMED)
settings.register_profile("ci", max_examples=40, derandomize=True, print_blob=True, **_UNTIMED)
settings.register_profile("nightly", max_examples=2000, stateful_step_count=100, **_UNTIMED)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    """Each framework."""
    return SIDES[request.param]


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of a store that is not there yet, in each format that is written as rows come."""
    return tmp_path / f"rows{request.param}"


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sync does shows after a power cut only; waiting for it takes most of the time."""
    for name in ("sync_data", "sync_directory"):
        monkeypatch.setattr(disk, name, lambda _: None)


@pytest.fixture
def pictures() -> None:
    """Asked for by a test that wants a report's pictures where `no_pictures` is of its file."""


@pytest.fixture
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report has its tables alone: drawing takes three quarters of a publication, which is not about it."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("fostore.evaluate.html._drawn", lambda summary: {})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()

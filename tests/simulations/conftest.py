"""Guarantees over repeated draws: a short version with `make test`, the full one with `make simulations` (`--full`).

The full one ends with the figures that the tests have noted, passed or not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="as many draws as the claims are made for")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--full"):
        return
    terminalreporter.section("figures")
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        if report.when == "call" and report.user_properties:
            name = report.nodeid.partition("tests/simulations/")[2] or report.nodeid
            figures = ", ".join(f"{key} {value}" for key, value in report.user_properties)
            terminalreporter.write_line(f"{name}: {figures} ({report.outcome})")


@dataclass(frozen=True)
class Size:
    """How many draws to make, and how far a share of them may be from its bar by chance."""

    full: bool
    record: Callable[[str, object], None]

    def draws(self, short: int, full: int) -> int:
        return full if self.full else short

    def slack(self, draws: int, *, share: float = 0.95) -> float:
        """Nothing in the full version; three standard errors of a share in the short one."""
        return 0.0 if self.full else 3 * (share * (1 - share) / draws) ** 0.5

    def note(self, **figures: float) -> None:
        """Figures to be shown after the full version."""
        for name, value in figures.items():
            self.record(name, f"{value:.4g}")

    def only_in_full(self) -> None:
        if not self.full:
            pytest.skip("in the full version: make simulations")


@pytest.fixture
def size(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Size:
    return Size(full=request.config.getoption("--full", default=False), record=record_property)

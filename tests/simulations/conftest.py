"""Guarantees over repeated draws: a short version with `make test`, the full one with `make simulations` (`--full`)."""

from dataclasses import dataclass

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="as many draws as the claims are made for")


@dataclass(frozen=True)
class Size:
    """How many draws to make, and how far a share of them may be from its bar by chance."""

    full: bool

    def draws(self, short: int, full: int) -> int:
        return full if self.full else short

    def slack(self, draws: int, *, share: float = 0.95) -> float:
        """Nothing in the full version; three standard errors of a share in the short one."""
        return 0.0 if self.full else 3 * (share * (1 - share) / draws) ** 0.5

    def only_in_full(self) -> None:
        if not self.full:
            pytest.skip("in the full version: make simulations")


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Size:
    return Size(full=request.config.getoption("--full", default=False))

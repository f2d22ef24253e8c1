"""`load_fixture("ref_delay")` for tests that take it as a pytest fixture."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.parity import fixture_files


@pytest.fixture(scope="session")
def load_fixture() -> Callable[[str], Any]:
    """Reads `<name>.pt.gz`; a missing file is an error, never a skip."""
    return lambda name: fixture_files.load_fixture(f"{name.removesuffix('.pt.gz')}.pt.gz")

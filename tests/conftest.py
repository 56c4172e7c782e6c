"""What must hold before any test module is imported: no network, no screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(autouse=True)
def _denormals_as_they_were() -> Iterator[None]:
    """Models on the CPU flush denormal numbers to zero, for the whole process: the next test wants them back."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)

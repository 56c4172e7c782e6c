"""What must hold before any test module is imported: no network, no screen."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from hypothesis import settings

# Half a minute of the fast suite were examples; `pytest --hypothesis-profile=default` draws them all.
settings.register_profile("fast", max_examples=25, deadline=None)
settings.load_profile("fast")

"""LLM-wrapper: adapt a detector that cannot be trained to expressions it does not understand."""

from __future__ import annotations

__version__ = "0.1.0"

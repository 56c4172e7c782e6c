"""Tests of caches write hundreds of small files, and none of them cuts the power."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _number: None)

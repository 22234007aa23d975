"""Rows of the quality table that are `degre` at other settings: each trains, mines and learns for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from degre_prod.config import Settings, paper_settings

Variant = Callable[[Settings], Settings]

VARIANTS: Final[dict[str, Variant]] = {"paper": paper_settings}

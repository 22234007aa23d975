"""Structured logs: one JSON object a line, tracebacks without local variables (they may hold secrets)."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs() -> None:
    """For a serving process; escapes whatever users send."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )

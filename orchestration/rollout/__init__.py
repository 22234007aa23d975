"""Rollout: a new bundle reaches users by evidence, stage by stage, and leaves in one command. Here is what scripts call."""

from __future__ import annotations

from orchestration.rollout.activate import activate

__all__ = ["activate"]

"""Freed memory that stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys, numpy as np
from degre_prod.training.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    np.ones(4_000_000)  # 32 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(4_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_block_that_was_freed_is_used_again_without_the_kernel() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", CODE, how], check=True, capture_output=True, text=True).stdout)
        for how in ("usual", "keep")
    }
    assert faults["keep"] < 100
    assert faults["usual"] > 10 * faults["keep"] + 100

"""What a process that computes frees, it keeps: seen in the pages that it asks the kernel for."""

import platform
import subprocess
import sys

import pytest

COUNTED = """
import resource
from medschool.train.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(2):
    before = faults()
kept = keep_freed_memory()
for _ in range(2):
    after = faults()
print(kept, before, after)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is asked for it")
def test_large_blocks_are_asked_of_the_kernel_once() -> None:
    kept, before, after = subprocess.run(
        [sys.executable, "-c", COUNTED], check=True, capture_output=True, text=True
    ).stdout.split()
    assert kept == "True"
    assert int(before) > 100 * max(1, int(after)), "pages asked for while four blocks of 64 MiB came and went"

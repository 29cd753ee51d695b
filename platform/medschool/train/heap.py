"""Memory of a process that computes on CPUs: what it frees it keeps for the next step.

glibc takes blocks above a threshold of at most 32 MiB from the kernel one by one, and gives each back when it is freed. Logits
and their gradients are such blocks, so that every step would touch the same memory for the first time, page by page. Now they
come from the heap, which is never trimmed. The price is that a process stays as large as it once was. Source: mallopt(3),
M_MMAP_MAX and M_TRIM_THRESHOLD.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""From glibc's malloc.h."""
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc for it, in this process from now on; False where the C library is another one, and nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))

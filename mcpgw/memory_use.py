"""How much memory this process holds."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Resident memory now, in bytes; the most there ever was, on systems without /proc."""
    if _STATUS.exists():
        pages = int(_STATUS.read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

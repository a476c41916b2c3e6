"""The most memory that this process has held. No torch here: what is imported would count."""

import resource
import sys
from pathlib import Path


def peak() -> float:
    """GiB resident at most. Linux gives a child its parent's maximum in `ru_maxrss`, so the kernel's own mark of this
    address space counts there."""
    status = Path("/proc/self/status")
    if status.exists():
        marks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(marks[0].split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)

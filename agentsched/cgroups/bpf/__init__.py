"""What the processes of a leaf do, wait for and run: told by the kernel (BPF), or polled where it cannot.

source = open_source()
source.watch(leaf)
source.events(timeout_s=1.0)    # [Forked(...), Executed(words=("pytest", "-q"), ...), ...]
source.facts(leaf)              # Facts(running_s=..., ready_s=..., page_faults=..., ...)
"""

from agentsched.cgroups.bpf.facts import (
    Event,
    Executed,
    Exited,
    Facts,
    Forked,
    OomKilled,
    Source,
    Threads,
)
from agentsched.cgroups.bpf.sensing import open_source

__all__ = ["open_source", "Source", "Facts", "Threads", "Event", "Forked", "Executed", "Exited", "OomKilled"]

"""What no policy can beat, worked out with hindsight: recomputation, throughput and time of a workload."""

from agentsched.workloads.bounds.contexts import BoundsError
from agentsched.workloads.bounds.makespan import MakespanBound, makespan_bound
from agentsched.workloads.bounds.packing import PackingBound, packing_bound, packing_bound_reclaiming
from agentsched.workloads.bounds.recompute import CallSpan, recompute_bound
from agentsched.workloads.bounds.runs import (
    EngineCalls,
    call_seconds_of_run,
    calls_of_run,
    recompute_bound_of_run,
)

__all__ = [
    "BoundsError",
    "CallSpan",
    "EngineCalls",
    "MakespanBound",
    "PackingBound",
    "call_seconds_of_run",
    "calls_of_run",
    "makespan_bound",
    "packing_bound",
    "packing_bound_reclaiming",
    "recompute_bound",
    "recompute_bound_of_run",
]

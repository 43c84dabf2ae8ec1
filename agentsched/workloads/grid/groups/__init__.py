"""The groups of cells, each of which answers one question about the policies."""

from __future__ import annotations

from agentsched.workloads.grid.groups import arriving, deadlines, larger, pressing, sweep

GROUPS = {
    group.name: group for part in (pressing, larger, arriving, deadlines, sweep) for group in part.GROUPS
}
"""By name, in the order of the tables."""

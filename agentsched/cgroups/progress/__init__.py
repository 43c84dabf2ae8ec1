"""How far a running tool is, read from its output: pure logic, one module a family of tools.

    tracker = Tracker(programs((), "pytest -q"))
    tracker.feed(b"collected 4 items\n\ntest_a.py ..", elapsed_s=1.2)
    tracker.told(elapsed_s=1.3)     # Told(done_fraction=0.5, source="2 of 4 tests")

``reading`` says what a reader is, ``registry`` which one reads what, and how to add one.
"""

from agentsched.cgroups.progress.reading import Reader
from agentsched.cgroups.progress.registry import register
from agentsched.cgroups.progress.tracker import Told, Tracker

__all__ = ["Tracker", "Told", "Reader", "register"]

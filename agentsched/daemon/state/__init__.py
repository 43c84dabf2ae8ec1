"""What outlives the daemon: programs, what was learned, who is who, and accounts, in one SQLite file."""

from agentsched.daemon.state.database import Database, StateError
from agentsched.daemon.state.keeper import Keeper

__all__ = ["Database", "Keeper", "StateError"]

"""The scheduling core: events in, decisions out, no I/O."""

from agentsched.core.core import Core
from agentsched.core.policies import ABLATION_NAMES, POLICY_NAMES, make_policy
from agentsched.core.state import IllegalEvent

__all__ = ["ABLATION_NAMES", "POLICY_NAMES", "Core", "IllegalEvent", "make_policy"]

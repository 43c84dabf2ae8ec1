"""agentsched: schedules LLM agents as whole programs."""

__version__ = "0.1.0"

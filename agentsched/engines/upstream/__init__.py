"""Engines that are servers of their own and speak an HTTP API for agents themselves: SGLang, vLLM, others.

Such an engine takes whole requests and gives whole answers, byte by byte as they are (``wire.py``), so that
nothing an engine can do is lost on the way. Prompts are rendered and tokenized over there: what a call
takes is known once it has ended. What else of the core's decisions it carries out is found when it is
attached (``dialect.py``).
"""

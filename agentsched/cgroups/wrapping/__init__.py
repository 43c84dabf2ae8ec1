"""Agents that were not made for sandboxes, run as they are: the agent in one leaf, each command that it runs
in a leaf of its own.

``tracking`` tells commands from the agent's own processes, ``joining`` tells which tool call of the model a
command is (both pure logic), ``agent`` runs it all; ``shims`` catches shells where there is no BPF.
"""

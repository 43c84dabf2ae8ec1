"""The controller of a host's tool calls: one process a host and user, that all sandboxes tell of their calls.

The logic is ``agentsched.core.tool_control``. Here is what it sees and does: ``client`` is a runtime's end of
the wire, ``server`` the other, ``process`` makes a process of that, ``hosts`` reads how much memory there is,
``sources`` notices at once what happens between two looks, ``hands`` carries actions out, each under a lease
that a watchdog ends.
"""

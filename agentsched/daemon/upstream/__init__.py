"""The gateway in front of engines that speak HTTP themselves: requests and answers pass as they are.

``reading.py`` looks into a request as far as identity needs, ``bodies.py`` makes the few changes that are
made, ``watching.py`` looks at what comes back, ``passage.py`` carries it, ``delivery.py`` brings it to the
client; ``calls.py`` and ``gateway.py`` put this into the place of what engines of our own need.
"""

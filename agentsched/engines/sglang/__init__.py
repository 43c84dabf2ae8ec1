"""SGLang as an engine that carries out standing orders: a plugin inside SGLang's own process.

``plugin.py`` is what SGLang's entry point loads, ``cache.py`` its radix cache with our retention,
``scheduling.py`` what its scheduler's loop does for us, ``channel.py`` the socket to the daemon.
``retained.py`` decides, and knows nothing of SGLang. ``compatibility.py`` says which of its members are
used, and refuses versions that do not have them. ``emitting.py`` has recorded outputs emitted, for requests
that ask for it as ``recorded.py`` says. Nothing else here is active unless the server is started with
``--radix-cache-backend agentsched``.

The other end, in the daemon, is ``agentsched.engines.upstream.orders``.
"""

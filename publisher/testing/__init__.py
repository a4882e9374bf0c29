"""A storefront double: a stateful stand-in for a WooCommerce shop, for tests, the demo and the benchmark.

It answers like the shop that was recorded (a test replays the recorded exchanges against it), and fails on demand in
every way that was seen. Start it with ``publisher.testing.server.serve``; it listens on 127.0.0.1 only. It is not
for production: nothing else in the publisher may import it.
"""

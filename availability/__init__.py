"""Inventory availability: one ledger of stock, answered from memory, that never oversells.

Start reading at ``availability.app`` (how a server is put together) or ``availability.cli`` (what it does
for a person). This package connects to nothing and reads no environment when it is imported.
"""

__version__ = "0.1.0"

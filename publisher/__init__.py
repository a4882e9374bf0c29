"""Bring the ledger's sellable quantities to storefronts, and read back what they show.

Will hold coalescing, delivery (pure, time as an input), catalogue mapping, the WooCommerce adapter, order
feeds and verification. May import `availability`'s client, replica, history and domain; never `ingest`.
"""

"""Bring the ledger's sellable quantities to storefronts, and read back what they show.

``storefront`` is the port that a shop fills (``woocommerce``, ``json_webhook``); ``coalescer`` and ``pace`` are pure;
``delivery`` writes, ``state`` remembers, ``feed`` follows the ledger, ``app`` puts them together. May import
`availability`'s client, replica, history and domain; never `ingest`.
"""

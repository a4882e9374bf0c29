"""Bring what ERP, WMS and order feeds report into the ledger.

Will hold the canonical delta, mapping (sku aliases, units of measure, kits, node codes), file formats,
sources, dead letters and reconciliation. May import `availability`'s client, replica, history and domain;
never `publisher`. What reconciliation knows of a storefront comes through the history database.
"""

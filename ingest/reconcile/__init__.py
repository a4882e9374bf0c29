"""Reconciliation: what a source says it has, beside the ledger as of the same point; causes, guard and corrections.

``settings`` and ``files`` say what comes in, ``positions`` and ``orders`` turn it into frames, ``compare`` finds the
variances, ``causes`` explains them from the journal, ``guard`` decides, ``corrections`` makes the deltas, ``desk`` runs
it all. The pure parts take and return polars frames; polars is imported where it is used.
"""

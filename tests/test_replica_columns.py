"""The replica's columns keep every row, whatever moves."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from availability.replica.columns import NODE_BITS, Positions


@settings(deadline=None)  # a busy machine is no failure
@given(seed=st.integers(0, 10**6))
def test_positions_keep_every_row_however_blocks_move(seed: int) -> None:
    """Rows of many skus over many nodes, added and changed in random batches, are those of a dict."""
    random, positions = Random(seed), Positions()
    positions.reserve_skus(8)
    model: dict[tuple[int, int], list[int]] = {}
    for _ in range(20):
        batch = {(random.randrange(8), random.randrange(40)): [random.randrange(99)] * 5 for _ in range(9)}
        model.update(batch)
        plan = positions.plan(
            np.array([sku for sku, _ in batch]),
            np.array([node for _, node in batch]),
            np.array(list(batch.values())),
        )
        positions.commit(plan)
        if random.random() < 0.2:
            positions._wasted += 10**9  # as if most rows were holes
            positions = positions.compacted() or positions
    rows = positions.rows(np.arange(8))
    keys = np.repeat(rows.skus << NODE_BITS, np.diff(rows.offsets)) | rows.nodes
    found = {
        (key >> NODE_BITS, key & 255): row
        for key, row in zip(keys.tolist(), rows.values.tolist(), strict=True)
    }
    assert found == model
    assert positions.count == len(model)

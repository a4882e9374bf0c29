"""The shop's catalogue as last seen, in the history database: a restarted publisher need not page it again.

Synchronous; times: seconds since 1970. Raises HistoryError.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import reading, upsert, writing
from availability.history.shop_tables import shop_listings, shops
from publisher.storefront import Kind, Listing, Managed


class ListingRows:
    """One channel's listings."""

    def __init__(self, engine: Engine, channel: str) -> None:
        self._engine = engine
        self.channel = channel

    def keep(self, listings: Sequence[Listing], walk: float) -> None:
        """Keep listings as this walk (its beginning) or look saw them."""
        if not listings:
            return
        with writing(self._engine) as connection:
            statement = upsert(connection, shop_listings)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["channel", "listing_id"],
                    set_={
                        name: statement.excluded[name]
                        for name in ("sku", "kind", "managed", "parent_id", "walk")
                    },
                ),
                [
                    {
                        "channel": self.channel,
                        "listing_id": one.listing_id,
                        "sku": one.sku,
                        "kind": one.kind.value,
                        "managed": one.managed.value,
                        "parent_id": one.parent_id,
                        "walk": walk,
                    }
                    for one in listings
                ],
            )

    def end_walk(self, walk: float) -> None:
        """Forget listings that a whole walk did not see, and note the walk."""
        with writing(self._engine) as connection:
            connection.execute(
                sa.delete(shop_listings).where(
                    shop_listings.c.channel == self.channel, shop_listings.c.walk < walk
                )
            )
            connection.execute(
                sa.update(shops)
                .where(shops.c.channel == self.channel)
                .values(catalogue_at=walk, changes_since=walk)
            )

    def drop(self, listing_ids: Sequence[str]) -> None:
        """Forget listings that are no longer there."""
        with writing(self._engine) as connection:
            for at in range(0, len(listing_ids), 500):
                connection.execute(
                    sa.delete(shop_listings).where(
                        shop_listings.c.channel == self.channel,
                        shop_listings.c.listing_id.in_(listing_ids[at : at + 500]),
                    )
                )

    def note_changes(self, since: float) -> None:
        """Note up to when the catalogue's changes are known."""
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(shops).where(shops.c.channel == self.channel).values(changes_since=since)
            )

    def all(self) -> list[Listing]:
        """Return the catalogue as last seen; numbers are not kept."""
        table = shop_listings
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(table).where(table.c.channel == self.channel)).all()
        return [
            Listing(
                listing_id=row.listing_id,
                sku=row.sku,
                kind=Kind(row.kind),
                managed=Managed(row.managed),
                quantity=None,
                parent_id=row.parent_id,
            )
            for row in rows
        ]

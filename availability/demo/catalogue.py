"""Who sells what from where in the demo: two warehouses and a store, three channels, eight skus and a kit."""

from __future__ import annotations

from dataclasses import dataclass

from availability.demo.books import Buffer, Channel

NORTH, SOUTH, STORE = "wh-north", "wh-south", "store"
NODES = (NORTH, SOUTH, STORE)

CHANNELS: dict[str, Channel] = {
    "web": Channel(nodes=(NORTH, SOUTH, STORE), buffer=Buffer(percent=10)),
    "market": Channel(nodes=(NORTH, SOUTH), buffer=Buffer(units=5)),
    "pos": Channel(nodes=(STORE, SOUTH), buffer=Buffer()),
}
BUFFER_WORDS = {"web": "10 %", "market": "5", "pos": "0"}
CHANNEL_SHARES = {"web": 6, "market": 3, "pos": 2}
"""How often a shopper comes through which channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A sku with its opening stock per node of NODES."""

    sku: str
    opening: tuple[int, int, int]


ITEMS = (
    Item(sku="MUG-BLUE", opening=(40, 22, 8)),
    Item(sku="MUG-RED", opening=(26, 30, 6)),
    Item(sku="TEE-S", opening=(30, 18, 10)),
    Item(sku="TEE-M", opening=(44, 36, 12)),
    Item(sku="LAMP", opening=(18, 12, 3)),
    Item(sku="KETTLE", opening=(24, 16, 5)),
    Item(sku="SHOE:42 {red}", opening=(20, 14, 7)),  # a sku is opaque text
)
FLASH = Item(sku="CONSOLE-X", opening=(3, 2, 0))
FLASH_CHANNEL = "web"
BUYERS_A_UNIT = 40
SAFETY_STOCK = {("LAMP", STORE): 1, ("KETTLE", STORE): 1}
"""The pieces on display are never sold."""

KIT = "BREAKFAST-SET"
KIT_PARTS = {"MUG-BLUE": 2, "KETTLE": 1}
"""A bundle has no stock of its own: it and its parts are sold from the same shelves."""
FENCE_CHANNEL, FENCE_SKU, FENCE_UNITS = "market", "MUG-RED", 12
"""Units that only the marketplace may sell, agreed with it."""

SKUS = (FLASH.sku, *(item.sku for item in ITEMS), KIT)

"""What an operator writes down about storefronts: one TOML file of ``[shops.CHANNEL]``, all errors told at once.

Keys never stand in the file: it names files or environment variables that hold them, read when they are needed.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

SKU_BYTES_MAX = 64
KEY_BYTES_MAX = 4_096
ITEMS_MAX = 100
"""A WooCommerce batch takes no more: create, update and delete together."""


class SettingsRefused(Exception):
    """The file is wrong; the message names every error with its place."""


class Mode(Enum):
    """Who subtracts a sale. OWNER: the checkout reserves with the ledger. MIRROR: the shop does it itself."""

    OWNER = "OWNER"
    MIRROR = "MIRROR"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class SecretPlace(_Section):
    """Where a secret is: a file or a variable of the environment, one of the two."""

    file: Path | None = Field(None, description="File that holds it.")
    env: str | None = Field(None, min_length=1, description="Variable of the environment that holds it.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise ValueError("give file or env")
        return self

    def read(self, environment: Mapping[str, str]) -> SecretStr:
        """Return the secret. Raises SettingsRefused, without it."""
        if self.env is not None:
            told = environment.get(self.env, "").strip()
            if not told:
                raise SettingsRefused(f"the variable {self.env} is not set")
        else:
            assert self.file is not None
            try:
                told = self.file.read_bytes()[:KEY_BYTES_MAX].decode("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsRefused(f"{self.file}: the secret cannot be read") from error
            if not told:
                raise SettingsRefused(f"{self.file}: the secret is empty")
        return SecretStr(told)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A shop's key and secret; neither is ever printed."""

    key: SecretStr
    secret: SecretStr

    def fingerprint(self) -> str:
        """Return what tells two pairs apart without telling them."""
        both = f"{self.key.get_secret_value()}\0{self.secret.get_secret_value()}"
        return hashlib.sha256(both.encode()).hexdigest()[:16]


class PaceSettings(_Section):
    """How hard a shop may be worked."""

    concurrency_max: int = Field(2, ge=1, le=16, description="Writes under way at once, at most.")
    items_start: int = Field(20, ge=1, le=ITEMS_MAX, description="Items of a write at the beginning.")
    items_max: int = Field(50, ge=1, le=ITEMS_MAX, description="Items of one write, at most.")
    target_ms: int = Field(1_500, ge=10, le=60_000, description="Writes that take longer get fewer items.")
    slow_ms: int = Field(
        8_000, ge=20, le=600_000, description="Writes that take longer halve items and concurrency."
    )
    items_per_s_max: float = Field(
        200.0, gt=0, le=100_000, description="Ceiling of the shop, items a second."
    )
    failures_open: int = Field(3, ge=1, le=100, description="So many failures in a row open the breaker.")
    open_ms: int = Field(2_000, ge=10, le=3_600_000, description="First pause of an open breaker.")
    open_ms_max: int = Field(
        120_000, ge=10, le=3_600_000, description="Longest pause; each doubles the last."
    )
    retry_ms: int = Field(500, ge=1, le=600_000, description="First pause of an item that is tried again.")
    retry_ms_max: int = Field(60_000, ge=1, le=3_600_000, description="Longest pause of such an item.")
    attempts_max: int = Field(8, ge=1, le=1_000, description="Then the item becomes a dead letter.")
    retry_share: float = Field(
        0.2, gt=0, le=1, description="Retries that each success pays for; more wait for it."
    )
    retries_burst: int = Field(50, ge=1, le=100_000, description="Retries that are paid for in advance.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.items_start > self.items_max:
            raise ValueError("items_start is above items_max")
        if self.slow_ms <= self.target_ms:
            raise ValueError("slow_ms is not above target_ms")
        if self.open_ms > self.open_ms_max or self.retry_ms > self.retry_ms_max:
            raise ValueError("a first pause is longer than the longest")
        return self


class CatalogueSettings(_Section):
    """How skus become the shop's products."""

    manage_stock: Literal["report", "switch_on"] = Field(
        "report",
        description="A product without stock keeping is reported; switch_on changes the merchant's setting.",
    )
    refresh_hour_utc: int = Field(3, ge=0, le=23, description="Hour of the nightly walk.")
    changed_ms: int = Field(60_000, ge=100, le=86_400_000, description="Pause between looks for changes.")
    page_pause_ms: int = Field(0, ge=0, le=60_000, description="Pause between two pages.")
    cross_parent_batches: bool = Field(
        True, description="Variations of several parents in one write: understood by all versions seen."
    )


class RankedRule(_Section):
    """Scarce units are shown where it counts."""

    below: int = Field(ge=1, le=1_000_000_000, description="The rule holds below so many sellable units.")
    channels: tuple[str, ...] = Field(min_length=1, description="Channels that show them; others show 0.")


class WebhookSettings(_Section):
    """The shop's webhooks for its orders: sooner than polling, never instead of it."""

    public_url: str = Field(description="Our address as the shop reaches it; /shops/CHANNEL/orders is added.")
    secret: SecretPlace = Field(description="Signs every delivery; at least 16 bytes.")
    manage: bool = Field(
        True, description="Make the webhooks, and make those anew that the shop switched off."
    )
    check_ms: int = Field(60_000, ge=1_000, le=86_400_000, description="Pause between looks at them.")
    body_bytes_max: int = Field(2_000_000, ge=1_000, le=100_000_000, description="Size of one delivery.")

    @field_validator("public_url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        if not parts.hostname or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise ValueError("https://… (or http://…)")
        if parts.username is not None or parts.password is not None:
            raise ValueError("no user and no password in it")
        return url.rstrip("/")


class OrdersSettings(_Section):
    """How the shop's orders come into the ledger."""

    source: str = Field("", max_length=64, description="Source of the order facts; the channel where empty.")
    poll_ms: int = Field(5_000, ge=100, le=3_600_000, description="Pause between two polls.")
    overlap_s: int = Field(
        120, ge=1, le=86_400, description="Each poll begins so far behind the last order that was seen."
    )
    check_ms: int = Field(
        600_000, ge=1_000, le=86_400_000, description="An order that counts may go unseen for so long."
    )
    watch_days: int = Field(
        30, ge=1, le=3_650, description="Orders touched since then are missed when they vanish."
    )
    keep_days: int = Field(180, ge=31, le=3_650, description="An untouched order is forgotten after that.")
    settle_ms: int = Field(
        3_000, ge=0, le=600_000, description="Mirror: so long after an order's facts its skus are read again."
    )
    more_statuses: tuple[str, ...] = Field((), description="Statuses of plugins that take units too.")
    gives_back: tuple[Literal["failed", "refunded", "trash", "vanished"], ...] = Field(
        (), description="States that cancel an order in the ledger although the shop gives nothing back."
    )
    owned_node: str = Field(
        "", max_length=64, description="Node whose stock the shop books: completed orders ship from it."
    )
    webhooks: WebhookSettings | None = None


class ShopSettings(_Section):
    """One storefront."""

    kind: Literal["woocommerce", "json_webhook"] = Field("woocommerce", description="What the shop is.")
    mode: Mode = Field(Mode.OWNER, description="Who subtracts a sale: OWNER the ledger, MIRROR the shop.")
    url: str = Field(description="The shop's address; keys are sent by https, or signed over http.")
    home_url: str = Field(
        "", description="WordPress's own address where it is another one: signatures are made of it."
    )
    tls_ca_file: Path | None = Field(None, description="Authority of the shop's certificate, PEM.")
    key: SecretPlace | None = Field(None, description="Consumer key: `{ file = … }` or `{ env = … }`.")
    secret: SecretPlace | None = Field(None, description="Consumer secret, or the webhook's, likewise.")
    timeout_ms: int = Field(60_000, ge=100, le=600_000, description="Longest wait for an answer.")
    connect_ms: int = Field(5_000, ge=10, le=60_000, description="Longest wait for a connection.")
    answer_bytes_max: int = Field(20_000_000, ge=1_000, description="Size of one answer.")
    orphan_ms: int = Field(
        10_000, ge=0, le=600_000, description="What a dead publisher was writing is left alone for so long."
    )
    recheck_ms: int = Field(
        60_000, ge=0, le=3_600_000, description="After an unknown outcome it is looked at once more."
    )
    verify_ms: int = Field(
        3_600_000,
        ge=1_000,
        le=604_800_000,
        description="All skus are read back within so long, all the time.",
    )
    publish_limit: int | None = Field(
        None, ge=0, le=1_000_000_000, description="Highest number shown; the channel's policy may be lower."
    )
    agreed_ms: int = Field(
        2_000, ge=1, le=86_400_000, description="A change that is acknowledged later counts as a breach."
    )
    high_demand: Path | None = Field(
        None, description="Skus of this file, one a line, are told apart in metrics."
    )
    allow_list: Path | None = Field(None, description="Pilot: only the skus of this file, one a line.")
    aliases: dict[str, str] = Field(default_factory=dict, description="The shop's sku = the ledger's.")
    zero_guard_percent: int = Field(
        20, ge=0, le=100, description="More of the shop going to 0 at once waits for an operator."
    )
    zero_guard_min: int = Field(10, ge=0, le=1_000_000, description="Up to so many always may.")
    ranked: RankedRule | None = None
    orders: OrdersSettings | None = Field(None, description="Take the shop's orders in; MIRROR always does.")
    pace: PaceSettings = Field(default_factory=lambda: PaceSettings.model_validate({}))
    catalogue: CatalogueSettings = Field(default_factory=lambda: CatalogueSettings.model_validate({}))

    @field_validator("url", "home_url")
    @classmethod
    def _address(cls, url: str) -> str:
        if not url:
            return url
        parts = urlsplit(url)
        if parts.port == 0 or not parts.hostname or parts.scheme not in ("http", "https"):
            raise ValueError("https://… (or http://…, with signed calls)")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("only scheme, host, port and path: secrets belong into files")
        return url.rstrip("/")

    @field_validator("aliases")
    @classmethod
    def _one_each(cls, aliases: dict[str, str]) -> dict[str, str]:
        for sku in (*aliases, *aliases.values()):
            if not sku or len(sku.encode()) > SKU_BYTES_MAX:
                raise ValueError(f"{sku!r} is no sku: 1 to {SKU_BYTES_MAX} bytes")
        if len(set(aliases.values())) != len(aliases):
            raise ValueError("two skus of the shop mean one of the ledger")
        return aliases

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.url:
            raise ValueError("url: an address is needed")
        if self.kind == "woocommerce" and (self.key is None or self.secret is None):
            raise ValueError("key and secret are needed")
        if self.kind == "json_webhook":
            if self.orders is not None:
                raise ValueError("json_webhook: it has no orders to read")
            if self.mode is Mode.MIRROR:
                raise ValueError("json_webhook: nothing can be read back, so mode is OWNER")
            if self.secret is None:
                raise ValueError("secret is needed: it signs every call")
        return self

    @property
    def order_settings(self) -> OrdersSettings | None:
        """Return how orders come in; None: they do not."""
        if self.orders is None and self.mode is Mode.MIRROR:
            return OrdersSettings.model_validate({})
        return self.orders

    def credentials(self, environment: Mapping[str, str]) -> Credentials:
        """Read the keys as they are now. Raises SettingsRefused, without them."""
        empty = SecretStr("")
        return Credentials(
            self.key.read(environment) if self.key is not None else empty,
            self.secret.read(environment) if self.secret is not None else empty,
        )

    def allowed(self) -> frozenset[str] | None:
        """Read the pilot's list; None: every sku. Raises SettingsRefused."""
        return None if self.allow_list is None else _skus_of(self.allow_list)

    def in_high_demand(self) -> frozenset[str]:
        """Read the skus that are told apart. Raises SettingsRefused."""
        return frozenset() if self.high_demand is None else _skus_of(self.high_demand)


class PublisherSettings(_Section):
    """All storefronts of one publisher."""

    shops: dict[str, ShopSettings] = Field(min_length=1)

    @field_validator("shops")
    @classmethod
    def _channels(cls, shops: dict[str, ShopSettings]) -> dict[str, ShopSettings]:
        for channel in shops:
            if not channel or len(channel.encode()) > SKU_BYTES_MAX:
                raise ValueError(f"{channel!r} is no channel: 1 to {SKU_BYTES_MAX} bytes")
        return shops


def read_shops(path: Path) -> dict[str, ShopSettings]:
    """Read the file of shops, by channel. Paths in it count from its folder. Raises SettingsRefused with all errors."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsRefused(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsRefused(f"{path}: {error}") from error
    try:
        settings = PublisherSettings.model_validate(found)
    except ValidationError as error:
        problems = [
            f"{path}: {'.'.join(str(part) for part in one['loc']) or 'file'}: {one['msg']}"
            for one in error.errors()
        ]
        raise SettingsRefused("\n".join(problems)) from None
    return {channel: _placed(shop, path.parent) for channel, shop in settings.shops.items()}


def _skus_of(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsRefused(f"{path}: the list of skus cannot be read") from error
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _placed(shop: ShopSettings, folder: Path) -> ShopSettings:
    placed: dict[str, object] = {}
    for name in type(shop).model_fields:
        value = getattr(shop, name)
        if isinstance(value, Path):
            placed[name] = (folder / value).resolve()
        elif isinstance(value, SecretPlace):
            placed[name] = _secret_in(value, folder)
        elif isinstance(value, OrdersSettings) and value.webhooks is not None:
            hooks = value.webhooks.model_copy(update={"secret": _secret_in(value.webhooks.secret, folder)})
            placed[name] = value.model_copy(update={"webhooks": hooks})
    return shop.model_copy(update=placed)


def _secret_in(place: SecretPlace, folder: Path) -> SecretPlace:
    if place.file is None:
        return place
    return place.model_copy(update={"file": (folder / place.file).resolve()})

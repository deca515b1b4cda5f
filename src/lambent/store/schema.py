"""Tables, and how an older database becomes today's.

The types are those that SQLite and PostgreSQL share. Rows carry what is looked up, summed or ordered by as
columns, and the whole record as one document (`records`): a new field of a function needs no migration.

A migration is one function in `MIGRATIONS`, in order, run inside the transaction that also writes the new
number to `schema_version`. A released migration never changes; what it makes must be written out in it as
soon as its table gets a new shape.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    delete,
    insert,
    select,
)

METADATA = MetaData()

SCHEMA_VERSION = Table("schema_version", METADATA, Column("number", Integer, nullable=False))

#: Values that belong to the installation, such as the key that signs download links.
SETTINGS = Table(
    "settings",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

FUNCTIONS = Table(
    "functions",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    # Reserved concurrency; null when none is set. Summed over an account's region.
    Column("reserved", Integer, nullable=True),
    Column("document", LargeBinary, nullable=False),
)


def _of_function() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["account", "region", "name"],
        ["functions.account", "functions.region", "functions.name"],
        ondelete="CASCADE",
    )


VERSIONS = Table(
    "versions",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    # 0 is $LATEST, so that it comes first in every list.
    Column("ordinal", BigInteger, primary_key=True, autoincrement=False),
    Column("code_size", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
    _of_function(),
)

ALIASES = Table(
    "aliases",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("alias", String(128), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    _of_function(),
)

#: Resource policies of functions (qualifier "") and of their versions and aliases.
POLICIES = Table(
    "policies",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("qualifier", String(128), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    _of_function(),
)

#: A layer's row outlives its versions, so that a number is never given twice.
LAYERS = Table(
    "layers",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("name", String(140), primary_key=True),
    Column("last_version", BigInteger, nullable=False),
)

LAYER_VERSIONS = Table(
    "layer_versions",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("name", String(140), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("code_size", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
    ForeignKeyConstraint(["account", "region", "name"], ["layers.account", "layers.region", "layers.name"]),
)


#: Function URLs, one for each function (qualifier "") and alias; the id is in the host name.
FUNCTION_URLS = Table(
    "function_urls",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("qualifier", String(128), primary_key=True),
    Column("url_id", String(64), nullable=False, unique=True),
    Column("document", LargeBinary, nullable=False),
    _of_function(),
)


#: Provisioned concurrency, one configuration for each version (its number) and alias.
PROVISIONED = Table(
    "provisioned",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("qualifier", String(128), primary_key=True),
    # Summed over an account's region.
    Column("requested", Integer, nullable=False),
    Column("document", LargeBinary, nullable=False),
    _of_function(),
)


#: Lambda Managed Instances. That functions use one is looked up in their documents.
CAPACITY_PROVIDERS = Table(
    "capacity_providers",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("name", String(140), primary_key=True),
    Column("document", LargeBinary, nullable=False),
)


def _of_target() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["account", "region", "resource"],
        ["scalable_targets.account", "scalable_targets.region", "scalable_targets.resource"],
        ondelete="CASCADE",
    )


#: Application Auto Scaling. Resources are `function:NAME:QUALIFIER`; a target outlives its function, as on AWS.
SCALABLE_TARGETS = Table(
    "scalable_targets",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("resource", String(256), primary_key=True),
    Column("document", LargeBinary, nullable=False),
)

SCALING_POLICIES = Table(
    "scaling_policies",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("resource", String(256), primary_key=True),
    Column("policy", String(256), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    _of_target(),
)

SCHEDULED_ACTIONS = Table(
    "scheduled_actions",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("resource", String(256), primary_key=True),
    Column("action", String(256), primary_key=True),
    # Seconds since 1970; null: never again.
    Column("next_s", Double, nullable=True, index=True),
    Column("document", LargeBinary, nullable=False),
    _of_target(),
)

SCALING_ACTIVITIES = Table(
    "scaling_activities",
    METADATA,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    # Counts up, so that the newest can be listed first.
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("resource", String(256), nullable=False),
    Column("document", LargeBinary, nullable=False),
)


class SchemaTooNew(Exception):
    """The data directory was written by a newer Lambent; an older one must not touch it."""


def _first_tables(connection: Connection) -> None:
    METADATA.create_all(connection, tables=[SETTINGS, FUNCTIONS, VERSIONS, ALIASES])


def _layers_and_policies(connection: Connection) -> None:
    METADATA.create_all(connection, tables=[POLICIES, LAYERS, LAYER_VERSIONS])


def _function_urls(connection: Connection) -> None:
    METADATA.create_all(connection, tables=[FUNCTION_URLS])


def _provisioned_and_scaling(connection: Connection) -> None:
    tables = [PROVISIONED, SCALABLE_TARGETS, SCALING_POLICIES, SCHEDULED_ACTIONS, SCALING_ACTIVITIES]
    METADATA.create_all(connection, tables=tables)


def _capacity_providers(connection: Connection) -> None:
    METADATA.create_all(connection, tables=[CAPACITY_PROVIDERS])


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    _first_tables,
    _layers_and_policies,
    _function_urls,
    _provisioned_and_scaling,
    _capacity_providers,
)


def migrate(connection: Connection) -> int:
    """Bring the database to this program's schema; the number that it was at before."""
    SCHEMA_VERSION.create(connection, checkfirst=True)
    found = connection.scalar(select(SCHEMA_VERSION.c.number)) or 0
    if found > len(MIGRATIONS):
        raise SchemaTooNew(
            f"The state database has schema {found}, this Lambent knows up to {len(MIGRATIONS)}. "
            "Use the Lambent that wrote it, or a newer one."
        )
    if found < len(MIGRATIONS):
        for step in MIGRATIONS[found:]:
            step(connection)
        connection.execute(delete(SCHEMA_VERSION))
        connection.execute(insert(SCHEMA_VERSION).values(number=len(MIGRATIONS)))
    return found

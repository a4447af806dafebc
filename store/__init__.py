"""What a study knows: Parquet units, events, and DuckDB views over both. See docs/store.md."""

from . import atomic, ids, schema
from .bundles import export, import_
from .compact import compact
from .connection import DamagedWarning, audio, connect, query, refresh, renew, renew_soon, version
from .errors import Damage, StoreError, UserError
from .events import append
from .lab import lab_path
from .units import Unit, exists, publish, unit_id
from .verify import verify

__all__ = [
    "Damage",
    "DamagedWarning",
    "StoreError",
    "Unit",
    "UserError",
    "append",
    "atomic",
    "audio",
    "compact",
    "connect",
    "exists",
    "export",
    "ids",
    "import_",
    "lab_path",
    "publish",
    "query",
    "refresh",
    "renew",
    "renew_soon",
    "schema",
    "unit_id",
    "verify",
    "version",
]

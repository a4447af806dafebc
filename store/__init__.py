"""What a study knows: Parquet units, events, and DuckDB views over both. See docs/store.md."""

from . import atomic, files, history, ids, schema
from .bundles import export, import_
from .compact import compact
from .connection import audio, connect, query, refresh, renew, renew_soon, version
from .decisions import append
from .errors import Damage, DamagedWarning, StoreError, UserError
from .history import rows as log
from .lab import lab_path
from .units import Unit, exists, publish, unit_id
from .verify import prefer, verify

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
    "files",
    "history",
    "ids",
    "import_",
    "lab_path",
    "log",
    "prefer",
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

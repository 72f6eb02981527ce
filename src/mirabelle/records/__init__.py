"""Settings as plain data: frozen records to and from TOML, functions by name, schedules, patterns."""

from mirabelle.records.record import build, default_paths, described, lookup, record, to_data

__all__ = ["build", "default_paths", "described", "lookup", "record", "to_data"]

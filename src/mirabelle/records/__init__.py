"""Settings as plain data: records and their conversion from and to TOML, objects by name, schedules and name patterns."""

from mirabelle.records.record import build, default_paths, described, record, to_data

__all__ = ["build", "default_paths", "described", "record", "to_data"]

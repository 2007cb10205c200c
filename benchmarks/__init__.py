"""Measurements: each module is a command that writes its result as data."""

"""Decode images of strangers within bounds of memory and time."""

"""Generators: what they learn by, what they are made of, and whether they are worth it."""

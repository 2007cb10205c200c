"""Several worker processes, and files that change."""

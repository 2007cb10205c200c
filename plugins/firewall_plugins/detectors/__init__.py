"""Built-in detectors, one a file."""

"""Built-in ensembles, one a file."""

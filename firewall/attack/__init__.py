"""How a guard is broken."""

"""How a guard is made."""

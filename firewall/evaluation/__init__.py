"""How trustworthy a guard is: attacks, flags, figures and a report. Everything here is offline."""

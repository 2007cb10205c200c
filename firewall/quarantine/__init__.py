"""What was refused, kept for people to look at: rows in a database, images beside it."""

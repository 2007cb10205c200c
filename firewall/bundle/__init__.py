"""How a guard travels: manifest, signature, store. Imports neither torch nor grpc."""

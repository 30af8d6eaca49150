"""The encoder, its heads and its losses."""

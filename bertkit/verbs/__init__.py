"""What the command line can do: one verb, one settings class, one function."""

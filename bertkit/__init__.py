"""bertkit: the whole life of a BERT encoder."""

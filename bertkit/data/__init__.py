"""From token shards to masked batches; order, pairs and masks are pure functions."""

"""What a model costs: cache, latency, memory, arithmetic, training time."""

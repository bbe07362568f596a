"""scripts/bench: measures the cost of the gate beside other proxies."""

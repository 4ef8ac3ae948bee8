"""Which sentences taught a model a fact: T-REx facts, a model pair, and the methods that look for the sources."""

"""The node's own memory: a journal that survives the agent, the node's random id, the lock that keeps it alone."""

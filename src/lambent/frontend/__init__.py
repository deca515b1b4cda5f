"""HTTP: listener, who is calling, and which room answers."""

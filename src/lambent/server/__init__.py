"""The composition root: makes the rooms, connects them, starts, drains and stops."""

"""What runs inside a sandbox. Imports nothing of ours: it runs on the interpreters of the functions (3.9 and later)."""

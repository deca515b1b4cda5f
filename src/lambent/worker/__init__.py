"""Environments on one host: launcher, zygotes, sandboxes, links, logs. Untrusted code runs only below this room."""

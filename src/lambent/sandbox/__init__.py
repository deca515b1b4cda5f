"""Isolation: what the machine allows, the privileged launcher, the seccomp filter, the interpreters of the host."""

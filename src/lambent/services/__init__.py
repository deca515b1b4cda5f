"""One package per AWS API; base.py makes a service of a codec and handlers."""

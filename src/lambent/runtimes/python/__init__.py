"""The Python runtime: AWS's runtime client in a fork of the zygote, on the frame link (bootstrap.py), or started by the
function's own wrapper, on the HTTP Runtime API (wrapped.py).

These files are run as scripts of a folder, by whichever interpreter serves the runtime.
"""

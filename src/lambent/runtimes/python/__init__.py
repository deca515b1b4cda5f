"""The Python runtime: a zygote per version, the sandbox's first process, and the runtime client on the frame link.

These files are run as scripts of a folder, by whichever interpreter serves the runtime; see zygote.py.
"""

"""What makes and keeps a sandbox, from the inside: the zygote, the first process of an environment, its mounts and
control group. Scripts for Python 3.9 and later that import nothing of ours but each other."""

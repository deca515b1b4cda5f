"""The layer's library: how often the extension has ticked so far."""


def so_far():
    try:
        with open("/tmp/ticks") as file:
            return int(file.read())
    except FileNotFoundError:
        return 0

"""What a restored environment does with the open descriptors that its template had.

A fork shares open files with its parent: offsets, sockets, pipes. No two environments may share a connection, so

    regular files    are opened again at the same offset (deleted ones stay shared)
    pipes            are made anew when both ends are here
    epoll, eventfd   are made anew with what they hold
    socket pairs     are made anew when both ends are here: event loops wake themselves up through one
    other sockets    are replaced by one whose other end is closed: reading ends at once, writing fails

`survey` looks once, in the template; `renew` is done in every environment.
"""

import fcntl
import os
import select
import socket
import stat

_EVENTPOLL, _EVENTFD = "anon_inode:[eventpoll]", "anon_inode:[eventfd]"


def survey(own):
    """Everything open but 0, 1, 2 and `own`, by what is to be done with it."""
    found = {"files": [], "pipes": [], "pairs": [], "sockets": [], "epolls": [], "events": []}
    pipes = {}
    unnamed = []
    for entry in os.listdir("/proc/self/fd"):
        number = int(entry)
        if number <= 2 or number in own:
            continue
        try:
            target = os.readlink("/proc/self/fd/" + entry)
            mode = os.fstat(number).st_mode
        except OSError:  # that of the listing itself
            continue
        if target == _EVENTPOLL:
            found["epolls"].append((number, _watched(number)))
        elif target == _EVENTFD:
            found["events"].append((number, _flags(number)))
        elif stat.S_ISREG(mode):
            place = _place(number)
            if place is not None:
                found["files"].append((number, target, _flags(number), place))
        elif stat.S_ISFIFO(mode) and target.startswith("pipe:"):
            pipes.setdefault(target, []).append((number, _flags(number)))
        elif stat.S_ISSOCK(mode):
            (unnamed if _is_unnamed_stream(number) else found["sockets"]).append(number)
    found["pipes"] = [ends for ends in pipes.values() if {flags & os.O_ACCMODE for _, flags in ends} == {0, 1}]
    found["pairs"] = _pair(unnamed)
    paired = {number for pair in found["pairs"] for number, _ in pair}
    found["sockets"] += [number for number in unnamed if number not in paired]
    return found


def renew(found):
    for number, path, flags, offset in found["files"]:
        _reopen(number, path, flags, offset)
    for ends in found["pipes"]:
        _replace(os.pipe(), [(number, flags, flags & os.O_ACCMODE) for number, flags in ends])
    for pair in found["pairs"]:
        made = [end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)]
        _replace(made, [(number, flags, at) for at, (number, flags) in enumerate(pair)])
    for number, flags in found["events"]:
        if hasattr(os, "eventfd"):
            _replace((os.eventfd(0, os.EFD_CLOEXEC),), [(number, flags, 0)])
    if found["sockets"]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.close()
        for number in found["sockets"]:
            _replace((os.dup(ours.fileno()),), [(number, _flags(number), 0)])
        ours.close()
    for number, watched in found["epolls"]:
        made = select.epoll()
        for each, mask in watched:
            try:
                made.register(each, mask)
            except OSError:
                pass  # it watched what is closed
        os.dup2(made.fileno(), number, inheritable=False)
        made.close()


def _place(number):
    """Where a file is read or written next; None for what only looks like one (a namespace)."""
    try:
        return os.lseek(number, 0, os.SEEK_CUR)
    except OSError:
        return None


def _flags(number):
    return fcntl.fcntl(number, fcntl.F_GETFL)


def _replace(made, places):
    """places: (descriptor, status flags, which of `made` goes there)."""
    for number, flags, which in places:
        os.dup2(made[which], number, inheritable=os.get_inheritable(number))
        fcntl.fcntl(number, fcntl.F_SETFL, flags)
    for each in made:
        os.close(each)


def _reopen(number, path, flags, offset):
    try:
        made = os.open(path, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC))
    except OSError:
        return
    os.lseek(made, offset, os.SEEK_SET)
    os.dup2(made, number, inheritable=os.get_inheritable(number))
    os.close(made)


def _watched(number):
    """(descriptor, events) of an epoll, as the kernel lists them."""
    with open("/proc/self/fdinfo/{}".format(number)) as file:
        rows = [line.split() for line in file if line.startswith("tfd:")]
    return [(int(row[1]), int(row[3], 16)) for row in rows]


def _is_unnamed_stream(number):
    with socket.socket(fileno=os.dup(number)) as it:
        try:
            return (
                it.family == socket.AF_UNIX
                and it.type == socket.SOCK_STREAM
                and not it.getsockname()
                and not it.getpeername()
            )
        except OSError:
            return False


def _pair(numbers):
    """Which are the two ends of one pair: a byte sent into one comes out of the other."""
    found, left = [], list(numbers)
    while left:
        first = left.pop()
        with socket.socket(fileno=os.dup(first)) as it:
            try:
                it.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                continue
        for other in left:
            if _takes_byte(other):
                found.append(((first, _flags(first)), (other, _flags(other))))
                left.remove(other)
                break
    return found


def _takes_byte(number):
    with socket.socket(fileno=os.dup(number)) as it:
        try:
            return it.recv(1, socket.MSG_DONTWAIT) == b"\0"
        except OSError:
            return False

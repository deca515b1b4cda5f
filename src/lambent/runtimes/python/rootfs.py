"""The root file system that the environments of one zygote share, read-only, in the zygote's own mount namespace.

The zygote builds it once and pivots into it; each environment's copy of the namespace then needs only what is its own:
/tmp, /proc and the code at /var/task. Nothing of the host is visible but the system's libraries and programs, the
interpreter, and the runtime's packages at /var/runtime.
"""

import os
import sys

import linux

#: Host folders that programs and libraries need. Symbolic links (merged /usr) are made again as links.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
#: Host files that name resolution, certificates and local time need.
_ETC = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/mime.types",
    "/etc/services",
    "/etc/protocols",
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_READ_ONLY = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
#: Where the code store stands for the instant between two mounts; detached in every environment.
CODE_STORE = "/.code"
_LOCKED_FLAGS = {os.ST_NOSUID: linux.MS_NOSUID, os.ST_NODEV: linux.MS_NODEV, os.ST_NOEXEC: linux.MS_NOEXEC}


def bind(source, target, flags=_READ_ONLY):
    """Bind mount with flags of its own. In a user namespace the source's nosuid/nodev/noexec may not be cleared."""
    linux.mount(source, target, None, linux.MS_BIND)
    kept = 0
    found = os.statvfs(target).f_flag
    for seen, flag in _LOCKED_FLAGS.items():
        if found & seen:
            kept |= flag
    linux.mount("none", target, None, linux.MS_REMOUNT | linux.MS_BIND | flags | kept)


def _place(root, path, is_dir):
    target = root + path
    if is_dir:
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        if not os.path.lexists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    return target


def _mirror(root, path):
    if os.path.islink(path) and path.count("/") == 1:
        os.symlink(os.readlink(path), root + path)
    elif os.path.exists(path):
        bind(path, _place(root, path, os.path.isdir(path)))


def build(root, interpreter_prefixes, packages, code_store, uids, rootless):
    """Build the tree at `root` (an empty folder) and make it `/` of this mount namespace.

    interpreter_prefixes: folders of the interpreter, kept at their own paths. packages: name -> host path of what
    stands in /var/runtime. code_store: host folder of unpacked code. uids: user ids that get a name. rootless: in a
    user namespace of our own.
    """
    os.umask(0o022)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", root, "tmpfs", linux.MS_NOSUID, "mode=755,size=16m")
    for path in _SYSTEM + _ETC:
        _mirror(root, path)
    for prefix in interpreter_prefixes:
        if not prefix.startswith(("/usr/", "/lib", "/bin")) and prefix != "/usr":
            bind(prefix, _place(root, prefix, True))
    for name, path in packages.items():
        bind(path, _place(root, "/var/runtime/" + name, os.path.isdir(path)))
    for name in _DEVICES:
        bind("/dev/" + name, _place(root, "/dev/" + name, False), linux.MS_NOSUID | linux.MS_NOEXEC)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, "{}/dev/{}".format(root, name))
    for path in ("/var/task", "/opt", "/tmp", "/proc", "/var/lang/bin", "/.old"):
        _place(root, path, True)
    for name in ("python", "python3", "python3.{}".format(sys.version_info[1])):
        os.symlink(os.path.realpath(sys.executable), "{}/var/lang/bin/{}".format(root, name))
    bind(code_store, _place(root, CODE_STORE, True))
    _write_users(root, uids)
    if rootless:  # a user namespace may mount a new /proc only where it sees a whole one
        linux.mount("proc", root + "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    linux.pivot_root(root, root + "/.old")
    os.chdir("/")
    linux.umount("/.old")
    os.rmdir("/.old")
    linux.mount("none", "/", None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID)


def _write_users(root, uids):
    """Every environment has a user id of its own on the host; inside all of them are AWS's `sbx_user1051`."""
    with open(root + "/etc/passwd", "w") as passwd, open(root + "/etc/group", "w") as group:
        passwd.write("root:x:0:0:root:/root:/bin/sh\n")
        group.write("root:x:0:\n")
        for uid in uids:
            passwd.write("sbx_user1051:x:{0}:{0}::/home/sbx_user1051:/sbin/nologin\n".format(uid))
            group.write("sbx_user1051:x:{}:\n".format(uid))


def mount_private(tmp_mib):
    """In an environment's own namespaces: a fresh /proc and an empty /tmp."""
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _tmp_options(tmp_mib))


def resize_tmp(tmp_mib):
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_REMOUNT | linux.MS_NOSUID | linux.MS_NODEV, _tmp_options(tmp_mib))


def _tmp_options(tmp_mib):
    return "mode=1777,size={0}m,nr_inodes={1}".format(tmp_mib, tmp_mib * 256)


def mount_code(folder):
    """Put one folder of the code store at /var/task and take the store itself out of sight."""
    bind("{}/{}".format(CODE_STORE, folder), "/var/task")
    linux.umount(CODE_STORE)

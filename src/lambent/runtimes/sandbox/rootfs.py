"""The root file system that the environments of one zygote share, read-only, in the zygote's own mount namespace.

The zygote builds it once and pivots into it; each environment's copy of the namespace then needs only what is its own:
/tmp, /proc and the code at /var/task. Nothing of the host is visible but the system's libraries and programs, the
interpreter, and the runtime's packages at /var/runtime.
"""

import os
import shutil

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


def build(root, interpreter_prefixes, packages, links, code_store, uids, rootless):
    """Build the tree at `root` (an empty folder) and make it `/` of this mount namespace.

    interpreter_prefixes: folders of the interpreter, kept at their own paths. packages: name -> host path of what
    stands in /var/runtime. links: name in /var/lang/bin -> program. code_store: host folder of unpacked code. uids:
    user ids that get a name. rootless: in a user namespace of our own.
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
    for path in ("/var/task", "/opt", "/tmp", "/proc", "/run", "/var/lang/bin", "/.old"):
        _place(root, path, True)
    _place(root, "/etc/hosts", False)
    for name, program in links.items():
        os.symlink(program, "{}/var/lang/bin/{}".format(root, name))
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


def mount_private(tmp_mib, address):
    """In an environment's own namespaces: a fresh /proc, an empty /tmp, and the names of its own loopback address."""
    mount_proc()
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _tmp_options(tmp_mib))
    _name_address(address)


def mount_proc():
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    _forget_shared_memory()


def mount_again(tmp_mib, address, template_uid, uid):
    """For an environment restored from a template, in a copy of the template's mounts: a /tmp of its own with what lies
    in the template's, and the names of its own address. `uid` is to own what `template_uid` owns."""
    if os.listdir("/tmp"):
        linux.mount("tmpfs", "/run", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _tmp_options(tmp_mib))
        os.setgroups([])
        os.setresgid(-1, template_uid, -1)
        os.setresuid(-1, template_uid, -1)  # what is read is user code's to arrange: with no more rights than its own
        try:
            _copy_tree("/tmp", "/run")
        finally:
            os.setresuid(-1, 0, -1)
            os.setresgid(-1, 0, -1)
        for folder, _, files, _ in os.fwalk("/run"):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                if path != "/run":
                    os.lchown(path, uid, uid)
        linux.mount("/run", "/tmp", None, linux.MS_BIND)
        linux.umount("/run")
    else:
        linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _tmp_options(tmp_mib))
    _name_address(address)


def _copy_tree(source, target):
    """Files, folders and symbolic links; nothing else of it can be used by another process anyway."""
    for entry in os.scandir(source):
        to = os.path.join(target, entry.name)
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), to)
        elif entry.is_dir():
            os.mkdir(to)
            _copy_tree(entry.path, to)
            os.chmod(to, entry.stat(follow_symlinks=False).st_mode & 0o7777)
        elif entry.is_file():
            shutil.copy2(entry.path, to, follow_symlinks=False)


def _name_address(address):
    with open("/etc/hosts") as file:
        hosts = "".join(line for line in file if not line.endswith("\tsandbox sandbox.localdomain\n"))
    linux.mount("tmpfs", "/run", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, "mode=755,size=64k")
    with open("/run/hosts", "w") as file:
        file.write("{}\n{}\tsandbox sandbox.localdomain\n".format(hosts.rstrip("\n"), address))
    bind("/run/hosts", "/etc/hosts")
    linux.umount("/run")


def _forget_shared_memory():
    """System V segments go with the last process that has them; else a reset would leave their memory in use."""
    try:
        with open("/proc/sys/kernel/shm_rmid_forced", "w") as file:
            file.write("1")
    except OSError:  # not ours to set in a user namespace without user 0
        pass


def resize_tmp(tmp_mib):
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_REMOUNT | linux.MS_NOSUID | linux.MS_NODEV, _tmp_options(tmp_mib))


def _tmp_options(tmp_mib):
    return "mode=1777,size={0}m,nr_inodes={1}".format(tmp_mib, tmp_mib * 256)


def mount_code(folder, layers):
    """Put folders of the code store at /var/task and, with layers, /opt; the store itself goes out of sight."""
    bind("{}/{}".format(CODE_STORE, folder), "/var/task")
    if layers:
        bind("{}/{}".format(CODE_STORE, layers), "/opt")
    linux.umount(CODE_STORE)


def enter_image(folder):
    """Make a container image's file system, read-only, the root; keep /proc, /dev, /tmp and name resolution."""
    root = "/var/task"
    bind("{}/{}".format(CODE_STORE, folder), root)
    linux.umount(CODE_STORE)
    for path in ("/proc", "/tmp"):
        linux.mount(path, root + path, None, linux.MS_BIND)
    for name in _DEVICES:
        target = "{}/dev/{}".format(root, name)
        if os.path.exists(target):
            linux.mount("/dev/" + name, target, None, linux.MS_BIND)
    for path in ("/etc/resolv.conf", "/etc/hosts"):
        if os.path.isfile(path) and os.path.isfile(root + path) and not os.path.islink(root + path):
            linux.mount(path, root + path, None, linux.MS_BIND)
    os.chdir(root)
    linux.pivot_root(".", ".")
    linux.umount(".")
    os.chdir("/")

"""A port for a debugger in the runtime process: debugpy, the function's own copy or the one installed beside Lambent.

debugpy starts a second process in the sandbox that speaks with clients (the adapter). A client that leaves can come
back; when it leaves a paused request, the adapter lets that go on.
"""

import os
import sys

_MISSING = (
    "LAMBENT_WARNING: this environment runs without a debugger: debugpy can not be imported ({}). Install it beside "
    "Lambent (pip install 'lambent[debug]') and restart the server, or add debugpy to the function's package.\n"
)
_TOO_OLD = (
    "LAMBENT_WARNING: this environment runs without a debugger: current releases of debugpy need Python 3.10; add an "
    "older one to the function's package.\n"
)
_NEEDED = (3, 10)
_FROZEN_MODULES = "PYDEVD_DISABLE_FILE_VALIDATION"  # of a warning about the interpreter's frozen modules


def listen(setting):
    """`setting`: {"host", "port", "wait", "folder"}: wait for a client or not; where Lambent's debugpy is."""
    if sys.version_info >= _NEEDED:
        sys.path.append(setting["folder"])
    os.environ[_FROZEN_MODULES] = "1"
    try:
        import debugpy  # noqa: T100

        debugpy.configure(subProcess=False)  # what the function starts is started as it says
        debugpy.listen((setting["host"], setting["port"]))  # noqa: T100
    except ImportError as error:
        sys.stderr.write((_MISSING if sys.version_info >= _NEEDED else _TOO_OLD).format(error))
        return
    except Exception as error:
        sys.stderr.write("LAMBENT_WARNING: this environment runs without a debugger: {!r}\n".format(error))
        return
    finally:
        del os.environ[_FROZEN_MODULES]
        if setting["folder"] in sys.path:
            sys.path.remove(setting["folder"])
    sys.stderr.write("Debugger listening on {}:{}\n".format(setting["host"], setting["port"]))
    if setting["wait"]:
        sys.stderr.write("Waiting for a debugger to attach.\n")
        debugpy.wait_for_client()  # noqa: T100

"""One environment for all commands and jobs, whatever the shell, notebook or container they start from."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping

SET = {
    "MPLBACKEND": "agg",  # figures are files; a notebook's backend need not even be installed here
    "MATPLOTLIBRC": os.devnull,
    "PYTHONIOENCODING": "utf-8:backslashreplace",
    "PILLOW_BLOCK_SIZE": "64m",  # of smaller blocks, a process keeps much when it is done with an image
}
UNSET = (
    # What is called float32 is float32; NVIDIA's PyTorch containers set the first of these.
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "SOURCE_DATE_EPOCH",  # matplotlib stops at one that is no number
    "PYTHONWARNINGS",  # as errors, those of other packages end a job
)
# What Python itself reads as it starts: too late for `settle`.
UNSET_FOR_JOBS = (*UNSET, "PYTHONINSPECT", "PYTHONOPTIMIZE")


def take_names_for_utf8() -> None:
    """Start this program again where Python takes names of files for another encoding than UTF-8, as in old locales.

    What it prints stays in the locale's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def settle() -> None:
    """Give this process and those that it starts the one environment; call it before the packages that read it load."""
    if os.environ.get("PYTHONWARNINGS"):
        sys.warnoptions.clear()
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
    for name in UNSET:
        os.environ.pop(name, None)
    os.environ.update(SET)


def of_jobs(inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that jobs get, besides those of UNSET_FOR_JOBS, which they do not.

    A job imports nothing from its working folder, where a file may have the name of a package: neither because
    `python -m` looks there first, nor because of an empty entry in PYTHONPATH.
    """
    path = inherited.get("PYTHONPATH", "")
    named = {"PYTHONPATH": os.pathsep.join(filter(None, path.split(os.pathsep)))} if path else {}
    return SET | {"PYTHONSAFEPATH": "1"} | named

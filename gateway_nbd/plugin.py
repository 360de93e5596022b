#!/usr/sbin/nbdkit python
"""Blockyard's plugin for nbdkit: `nbdkit python gateway_nbd/plugin.py pool=… image=…`.

nbdkit embeds the system's Python and knows nothing of virtual environments, so this file first makes our packages importable: those of
the checkout or of the site-packages directory it lies in. The rest is in `gateway_nbd.server`; `python3 plugin.py --help`
lists the parameters, and so does `nbdkit python plugin.py --dump-plugin`.
"""

import os
import site
import sys
from pathlib import Path

API_VERSION = 2


def _make_importable() -> None:
    """Put our own packages first on the path, and those we depend on before the system's."""
    home = Path(__file__).resolve().parent.parent
    before = list(sys.path)
    if home.name.endswith("-packages"):
        packages = home
    else:
        environment = home / ".venv" if (home / ".venv").is_dir() else Path(os.environ.get("VIRTUAL_ENV", sys.prefix))
        packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.addsitedir(str(packages))
    added = [entry for entry in sys.path if entry not in before and entry != str(home)]
    sys.path[:] = [str(home), *added, *[entry for entry in before if entry != str(home)]]


if "gateway_nbd" not in sys.modules:
    _make_importable()

from gateway_nbd import parameters, version  # noqa: E402  # importable only now
from gateway_nbd.callbacks import callbacks  # noqa: E402
from gateway_nbd.pools import RealPool  # noqa: E402
from gateway_nbd.server import Gateway  # noqa: E402

try:
    import nbdkit
except ImportError:  # run by hand
    print(f"Use: nbdkit python {sys.argv[0]} KEY=VALUE…\n\n{parameters.help_text()}")
else:
    globals().update(callbacks(Gateway(nbdkit, RealPool()), nbdkit, version()))

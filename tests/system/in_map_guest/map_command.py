"""Map any NBD server's export in the guest: python map_command.py NAME BLOCK_BYTES TIMEOUT_S COMMAND…, prints the device."""

import os
import sys

from core.errors import BlockyardError
from gateway_nbd.kernel.mapping import Order, map_image
from gateway_nbd.kernel.runtime import runtime_directory
from gateway_nbd.kernel.supervisor import Wishes

name, block_bytes, timeout_s, *command = sys.argv[1:]
wishes = Wishes(
    export_name="",
    connections=4,
    timeout_s=int(timeout_s),
    dead_connection_timeout_s=120,
    block_bytes=int(block_bytes),
    readonly=False,
)
try:
    print(map_image(Order(name, command, dict(os.environ), wishes), runtime_directory(os.environ, os.getuid())))
except BlockyardError as error:
    sys.exit(f"{type(error).__name__}: {error}")

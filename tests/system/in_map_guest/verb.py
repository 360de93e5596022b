"""The three verbs without the rest of the command line: python verb.py map|unmap|mapped ARGUMENTS…"""

import sys

from core.errors import BlockyardError, exit_status_of
from gateway_nbd.kernel.cli import map_verb, mapped_verb, unmap_verb

VERBS = {"map": map_verb, "unmap": unmap_verb, "mapped": mapped_verb}

try:
    VERBS[sys.argv[1]](sys.argv[2:], standalone_mode=False)
except BlockyardError as error:
    print(f"error: {error}")
    sys.exit(exit_status_of(error))

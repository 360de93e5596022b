"""Images as kernel block devices: `blockyard map`, `unmap`, `mapped`.

One supervisor process per device runs the NBD gateway, shakes hands with it, and gives the connections to the kernel's
nbd driver over generic netlink; when the gateway dies or is replaced it gives the kernel fresh connections.
docs/decisions/0003-kernel-devices.md says why it is done so.
"""

"""What `-o` may say: read and checked before anything is opened. Pure.

Options come from people, from fstab and from mount(8), which adds some of its own; those that mean something only to it are passed over.
"""

import difflib
from dataclasses import dataclass, field
from typing import Final

from core.errors import UsageError
from gateway_fuse.state import AtimePolicy

_FOR_KERNEL: Final = frozenset(
    ("suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "allow_other")
)
_FOR_OTHERS: Final = frozenset(
    (
        "defaults",
        "diratime",
        "nodiratime",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "_netdev",
        "nofail",
        "remount",
        "silent",
    )
)
_OTHERS_PREFIXES: Final = ("x-", "comment=", "uhelper=", "helper=")
VALUES: Final = ("server", "tls", "cache_dir", "cache_size", "key_file", "passphrase_file", "config", "metrics")
"""Options with a value, which the command line has as options of its own."""
_REFUSED: Final = {
    "writeback_cache": "two mounts could not see each other's writes in time",
    "allow_root": "use allow_other: permissions are checked either way",
    "auto_unmount": "the mount unmounts itself when it ends",
}


@dataclass(frozen=True)
class MountOptions:
    """The options, sorted out. `kernel` are for libfuse as they are."""

    kernel: frozenset[str] = frozenset()
    readonly: bool = False
    atime: AtimePolicy = AtimePolicy.RELATIME
    values: dict[str, str] = field(default_factory=dict)

    def for_fuse(self, name: str) -> set[str]:
        """Give the set that pyfuse3.init wants; `name` is what the mount table shows as the source."""
        # A comma would end the option for libfuse, and a backslash escapes one.
        source = name.replace("\\", "\\\\").replace(",", "\\,")
        return {
            *self.kernel,
            "default_permissions",
            "noatime",  # access times are the mount's own business
            f"fsname={source}",
            "subtype=blockyard",
            *(["ro"] if self.readonly else []),
        }


def read_options(texts: tuple[str, ...]) -> MountOptions:
    """Read every `-o`; the last of what contradicts itself wins. UsageError for what nobody knows."""
    kernel: set[str] = set()
    readonly, atime, values = False, AtimePolicy.RELATIME, dict[str, str]()
    for option in (each.strip() for text in texts for each in text.split(",")):
        key, equals, value = option.partition("=")
        if (
            not option
            or option in _FOR_OTHERS
            or option.startswith(_OTHERS_PREFIXES)
            or option == "default_permissions"
        ):
            continue
        if option in ("ro", "rw"):
            readonly = option == "ro"
        elif option in ("relatime", "noatime", "strictatime"):
            atime = AtimePolicy(option)
        elif option in ("atime", "norelatime"):
            atime = AtimePolicy.STRICTATIME
        elif option in _FOR_KERNEL:
            kernel -= {option.removeprefix("no"), f"no{option}"}
            kernel.add(option)
        elif equals and key in VALUES:
            values[key] = value
        else:
            raise UsageError(_unknown(key))
    return MountOptions(frozenset(kernel), readonly, atime, values)


def _unknown(key: str) -> str:
    if key in _REFUSED:
        return f"-o {key}: {_REFUSED[key]}"
    known = sorted({*_FOR_KERNEL, "ro", "rw", "relatime", "noatime", "strictatime", *(f"{name}=" for name in VALUES)})
    near = difflib.get_close_matches(key, [name.rstrip("=") for name in known], 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"-o {key}: there is no such option; {hint}"

"""Where the objects of one volume stand below its prefix (docs/format.md, "Keys of the store")."""

from core.errors import IntegrityError


class VolumeNames:
    """Keys of one volume. `prefix` has no trailing slash."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.log = f"{prefix}/log/"
        self.checkpoints = f"{prefix}/checkpoint/"
        self.readers = f"{prefix}/reader/"
        self.snapshots = f"{prefix}/snapshot/"
        self.children = f"{prefix}/child/"
        self.lock = f"{prefix}/lock"
        self.open_area = f"{prefix}/open"

    def segment(self, sequence: int) -> str:
        """Give the log key of a segment or barrier."""
        return f"{self.log}{sequence:016x}"

    def root(self, sequence: int) -> str:
        """Give the key of a checkpoint's root."""
        return f"{self.checkpoints}{sequence:016x}/root"

    def pages(self, sequence: int) -> str:
        """Give the key of a checkpoint's page pack."""
        return f"{self.checkpoints}{sequence:016x}/pages"

    def sequence_of(self, key: str) -> int:
        """Read the sequence out of a log or checkpoint key."""
        part = key.removeprefix(self.log).removeprefix(self.checkpoints).partition("/")[0]
        try:
            return int(part, 16)
        except ValueError:
            raise IntegrityError(f"{key} is no name of a log or a checkpoint: it does not belong here") from None


def growing_name(epoch: int, sequence: int) -> str:
    """Name the growing file of a segment."""
    return f"{epoch:08x}-{sequence:016x}"


def parse_growing_name(name: str) -> tuple[int, int] | None:
    """Read (epoch, sequence) out of a growing file's name; None for a file that is none of ours."""
    epoch, _, sequence = name.partition("-")
    try:
        return int(epoch, 16), int(sequence, 16)
    except ValueError:
        return None

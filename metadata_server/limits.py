"""Every bound of the metadata protocol, its server and its client, by name, and their relations to each other."""

from typing import Final

from core.units import KIB, MIB

# The protocol. docs/metadata-protocol.md gives the tables; more than this closes the connection.
MESSAGE_BYTES: Final = 8 * MIB
"""One message, its length left out."""
HELLO_BYTES: Final = 4 * KIB
"""The message a client begins with: before it, nobody knows who it is."""
CLIENT_NAME_BYTES: Final = 255
SLOTS: Final = 64
"""Requests of one session that may be on their way at once."""
SLOTS_NEVER_WAITING: Final = 8
"""The last of them are kept for what the server answers whatever it waits for: giving a lease back may need them."""
READ_DIRECTORY_ENTRIES: Final = 1024
READ_MAP_PAGES: Final = 256
INODES_PER_MESSAGE: Final = 16384
"""Inodes in one Release, Touch or claim."""
UPDATES_PER_COMMIT: Final = 8192
SEQUENCES_PER_NOTICE: Final = 65536

# Time.
LEASE_S: Final = 15.0
HEARTBEATS_PER_LEASE: Final = 4
TRUSTED_SHARE: Final = 0.8
"""A client trusts its leases for this share of the lease time; in the rest the kernel's caches, which answer by themselves, are emptied."""
GREETING_S: Final = 10.0
"""A connection that has not said which session it is by then is closed."""
SYNC_EVERY_S: Final = 1.0
"""The most that a power cut takes of what was answered, but not asked to be durable."""
QUICK_SYNC_S: Final = 0.0005
QUICK_SYNCS: Final = 8
"""After so many syncs in a row that took no longer, the server's loop syncs for its only client by itself."""
CHECKPOINT_EVERY_S: Final = 5.0
RECONNECT_S: Final = (0.01, 1.0)
"""The first and the longest pause between two attempts of a client to connect."""
CONNECT_S: Final = 10.0
"""One attempt to connect, the handshake in it."""
INLINE_WAIT_S: Final = 0.0003
"""A client's call waits this long for its answer without giving other tasks the processor: a task switch costs a third of a call."""
INLINE_SYNC_WAIT_S: Final = 0.001
"""The same for an answer that comes after a sync, where somebody sees to it that others are not kept waiting (`Client.doze`)."""
CLIENT_TURN_S: Final = 0.002
"""A client whose calls never sleep lets other tasks of its process run this often."""
PUMP_WAIT_S: Final = 0.001
"""After it answered something, the server's loop waits this long for more before it lets other tasks run."""
PUMP_TURN_S: Final = 0.005
"""The server's loop lets other tasks of its process run at least this often."""

# The server's memory.
CONNECTIONS: Final = 8192
SESSIONS: Final = 16384
READ_BYTES: Final = 256 * KIB
"""What is taken from one connection before it is another's turn."""
PAUSE_BYTES: Final = 1 * MIB
"""Unsent bytes of a connection from which on no more requests are read from it."""
UNSENT_BYTES: Final = 32 * MIB
"""Unsent bytes of a connection from which on it is given up; its session lives on for its lease time."""
LEASES_PER_SESSION: Final = 1_000_000
"""From here on a session is asked to give back the oldest it does not need."""
LEASES_PER_SESSION_HARD: Final = 4_000_000
"""From here on it is granted none: only open files keep that many."""
EVICTIONS: Final = 256
"""Leases one session is asked for at once because it has too many."""
MISSED_RELOCATIONS: Final = 262_144
"""Relocated segments that are kept for a session without a connection; it lasts its lease time."""

assert SLOTS_NEVER_WAITING < SLOTS
assert READ_DIRECTORY_ENTRIES * (4096 + 600) < MESSAGE_BYTES, "a listing of symbolic links fits in a message"
assert READ_MAP_PAGES * 1024 * 20 < MESSAGE_BYTES, "a map of single blocks fits in a message"
assert PAUSE_BYTES + MESSAGE_BYTES + READ_BYTES < UNSENT_BYTES, "who only reads slowly is slowed down, not given up"
assert 2 / HEARTBEATS_PER_LEASE < TRUSTED_SHARE < 1, "a lease outlives a lost heartbeat"
assert PUMP_WAIT_S < PUMP_TURN_S
assert LEASES_PER_SESSION < LEASES_PER_SESSION_HARD

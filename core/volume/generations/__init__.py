"""States of an image that last: snapshots, groups of them, clones and flattening, and what differs between two."""

"""The log of a volume and the block map over it: segments, checkpoints, recovery, and the writer's own collection."""

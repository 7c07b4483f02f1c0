"""What drivers share that mount overlays: the directories of layers and boxes, their mounts, snapshots and trees."""

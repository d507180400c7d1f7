"""`bench`: measures the engine on the road that every request takes, service and worker process, without a door."""

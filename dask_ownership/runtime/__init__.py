"""The core on a real cluster: asyncio, threads and distributed's comms around it."""

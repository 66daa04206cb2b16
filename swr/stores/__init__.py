"""Where entries and leases lie: in this process, in Redis, or in this process in front of Redis."""

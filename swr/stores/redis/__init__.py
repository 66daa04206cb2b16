"""The shared store in Redis or Valkey. Private.

From the bottom: `connection` (one socket), `server_link` (one server), `topology` and `cluster` (which server has which
key), `commands` (sends to the right server). Above them: `names`, `messages`, `scripts` and `tag_scripts` (the formats
of what is stored and published), `invalidations`, `shared_tag_versions`, `reading`, `leases`, `digests`,
`notifications`, `failover` and `reachability`. `store` combines all of these.

Imports: `swr.stores` and below; no other folder imports redis-py. Offers: `store.RedisStore` and `urls.servers_of`,
which turns a URL or a client into the servers behind it.
"""

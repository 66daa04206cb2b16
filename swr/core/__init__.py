"""The pure core: the one decision, keys, and entries as bytes. Private.

It does no I/O and uses no event loop, no server, no web framework and no clock of its own; time is an argument.
Imports: `swr.entry`, `swr.policy`, `swr.errors`. Offers: `decision.decide`, the templates and storage names of
`keys`, the text and the copies of arguments of `canonical`, and `codec`, which writes and reads the frames that Redis
holds. `shapes` says beforehand which types `codec` can write, and `fidelity` whether a value came back unchanged.
"""

"""Other servers over the same models, each written as its documentation advises, to stand beside the service.

They import the service's functions for pixels and people, so that all do the same work; what differs is the server:
how requests are read, queued, spread over threads and processes, and brought to the networks.
"""

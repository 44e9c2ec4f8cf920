"""Architectures: one file each, named as the architecture; it describes the network once, as an unfused graph."""

from sixfold.models.network import Network, load_network, supported_architectures

__all__ = ["Network", "load_network", "supported_architectures"]

"""The model store: names, pulling, verifying, listing.

Owns: everything under ``home()/models``, ``home()/hub`` and ``home()/partial``. Must not know: what is inside a model.
"""

from sixfold.store.listing import StoredModel, list_models, remove, short_names
from sixfold.store.pull import pull
from sixfold.store.registry import Entry, License
from sixfold.store.resolve import ResolvedModel, resolve

__all__ = [
    "Entry",
    "License",
    "ResolvedModel",
    "StoredModel",
    "list_models",
    "pull",
    "remove",
    "resolve",
    "short_names",
]

"""A bundle on disk: read with every hash verified, written whole or not at all.

What the manifest says is the business of :mod:`sad_runtime.manifest`. Imports the standard library only.
"""

from .read import Bundle
from .write import Draft, check_destination, write_bundle

__all__ = ["Bundle", "Draft", "check_destination", "write_bundle"]

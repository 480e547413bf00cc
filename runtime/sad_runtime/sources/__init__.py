"""What to read: SOURCE arguments → image items, in an order that does not depend on the file system.

Folders, files, patterns, lists, standard input and archives; nothing here decodes a picture. May import the
standard library, ``errors`` and the limits of ``images``.
"""

from .items import FailedItem, FileItem, Item, MemberItem, Stamp, absolute, read_file
from .left_out import LeftOut, describe_left_out
from .names import has_image_ending
from .opening import Sources, open_sources
from .shard import Shard

__all__ = [
    "FailedItem",
    "FileItem",
    "Item",
    "LeftOut",
    "MemberItem",
    "Shard",
    "Sources",
    "Stamp",
    "absolute",
    "describe_left_out",
    "has_image_ending",
    "open_sources",
    "read_file",
]

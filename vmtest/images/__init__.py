"""Images: found in folders, fetched, built reproducibly, and kept in the cache.

``load`` finds an image by name or path, ``prepare`` gives the files to boot it from, and builds them first where
the cache does not hold them. Once an image is built, nothing here touches the network again.
"""

from __future__ import annotations

from vmtest.images.catalog import load, names
from vmtest.images.prepared import Prepared, prepare

__all__ = ["Prepared", "load", "names", "prepare"]

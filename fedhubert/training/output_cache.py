"""The teacher's outputs on the site's disk: :class:`~fedhubert.disk_cache.DiskCache` by its earlier
name."""

from fedhubert.disk_cache import DiskCache as OutputCache

__all__ = ["OutputCache"]

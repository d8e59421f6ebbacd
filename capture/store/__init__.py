"""Key-value storage of a run: a local folder, ``memory://``, ``s3://`` and other fsspec schemes.

May import ``capture.errors`` only. ``Store`` is the entry point. botocore and fsspec load when the
first store of their kind is opened, so that importing this package stays cheap.
"""

from capture.store.config import StoreConfig as StoreConfig
from capture.store.store import DEFAULT as DEFAULT
from capture.store.store import Store as Store

"""Shards: the Parquet files of a run, how they are encoded, and how they are verified on reading.

May import ``capture.errors`` and ``capture.store``. ``encode`` and ``decode`` convert between a
table and bytes; ``open_parquet`` reads a file that may be damaged or hostile.
"""

from capture.shards.encoding import decode as decode
from capture.shards.encoding import encode as encode
from capture.shards.verified_parquet import open_parquet as open_parquet

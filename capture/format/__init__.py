"""The files of a run: markers, ``run.yaml``, checkpoints and tables.

``docs/reference/format.md`` specifies them. Imports from ``capture`` everything up to
``capture.config``. ``capture.format.checkpoint`` is a public module too; it is not imported here
because it needs torch.
"""

from capture.format.chain import read_segments as read_segments
from capture.format.chain import require_start as require_start
from capture.format.markers import File as File
from capture.format.markers import Marker as Marker

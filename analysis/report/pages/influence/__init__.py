"""The chapter with the answers of ``ontogeny influence`` that the run holds."""

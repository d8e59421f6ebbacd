"""Settings for all tests."""

from hypothesis import settings

settings.register_profile("ontogeny", deadline=None, derandomize=True)
settings.load_profile("ontogeny")

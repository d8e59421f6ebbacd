"""How autocast is set when a call is made, so that the call can be made again in the same way."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AutocastState:
    """Setting of autocast for one type of device."""

    device: str
    """Type of the device."""
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, device: str) -> "AutocastState":
        """Return the setting at present."""
        return cls(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def again(self) -> torch.autocast:
        """Return a context with this setting."""
        return torch.autocast(self.device, self.dtype, enabled=self.enabled)

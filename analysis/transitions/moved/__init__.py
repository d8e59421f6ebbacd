"""Find datums and neurons whose recorded shifts stand out inside a window of steps."""

"""Forward passes of a custom loop: those since its last update, and how they are joined."""

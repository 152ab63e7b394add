"""Attackers: they see an environment or an `AttackerView`, never the platform itself."""

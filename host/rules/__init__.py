"""Packet filter rules: rendering, restoring and saving them. Which there should be is the callers' matter."""

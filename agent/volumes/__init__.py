"""Volumes of pods: set-up, live update, and removal. `VolumeManager` is the way in; one plugin a file."""

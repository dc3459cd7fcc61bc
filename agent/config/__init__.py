"""Settings: command line flags, KubeletConfiguration, NodeletConfiguration. `load.load` is the way in.

Everything ends in one frozen `Settings`; no other package reads a file of settings or a flag.
"""

"""CRI v1: one call (or one tight group of calls) a file, named object_verb; `service` wires, `errors` maps.

Handlers are functions of a `core.Core` and a request. `*_plan` files are pure: messages in, specs out.
"""

"""Exec, attach and port-forward streams: the byte formats without I/O, and the server around them.

- http, websocket, spdy, channels: bytes to events and back, no sockets
- duplex, ws_streams, spdy_streams: the same on an asyncio connection
- session, portforward: what happens on a stream, whichever protocol carries it
- tokens, server: addresses good for one use, and who answers there
"""

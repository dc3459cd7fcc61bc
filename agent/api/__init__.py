"""The Kubernetes API as a client sees it.

transport    HTTP and TLS; the only user of aiohttp's client for the API
client       verbs on resources, decoded
watch        the three layers of following a collection; `Informer` is what components use
structs      every record in one import (meta, pod, volume, cluster)
errors       what can go wrong; the type says what to do about it
events, sources, certificates, kubeconfig    small services on top

Not in here: any decision about pods, nodes or services.
"""

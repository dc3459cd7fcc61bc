"""The device plugin contract, v1beta1: `plugin_pb2`, `plugin_pb2_grpc`, from `plugin.proto`."""

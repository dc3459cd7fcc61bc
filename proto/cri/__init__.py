"""CRI v1: `runtime_pb2`, `runtime_pb2_grpc`, from `runtime.proto`."""

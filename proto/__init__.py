"""gRPC contracts and the code generated from them by `proto/generate`. Nothing written by hand."""

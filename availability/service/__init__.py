"""The server's own layer: handlers, and what carries them over gRPC. Read `rpcs`, then `grpc_adapter`."""

"""The server's own layer: handlers, and what carries them over gRPC.

Read `rpcs`, `grpc_unary`, `grpc_pipeline`, `grpc_adapter`.
"""

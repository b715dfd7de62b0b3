"""Generated from proto/raft/transport/wire by tools/genproto.py; do not edit the modules here."""

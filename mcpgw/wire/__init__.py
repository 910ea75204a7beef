"""What crosses the wire: frames, their codec, and their schemas."""

"""Live recordings: text from packets, long recordings, proof that a stream equals offline."""

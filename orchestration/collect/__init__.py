"""From Redis Streams to the impression log: served lists joined with their feedback, nothing lost, nothing twice."""

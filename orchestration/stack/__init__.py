"""What the containers of docker-compose.yml run: docs/stack.md."""

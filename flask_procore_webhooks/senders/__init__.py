"""What is sent, and what proves it authentic. No Flask, no SQLAlchemy."""

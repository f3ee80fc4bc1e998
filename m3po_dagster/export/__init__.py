"""What leaves the project: preference pairs for other trainers, adapters with their model card, merged models."""

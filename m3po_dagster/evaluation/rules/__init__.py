"""How each public tool reads an answer: plain functions from text to text."""

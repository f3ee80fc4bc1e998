"""`m3po doctor`: whether a store and an installation are sound, and what to do where they are not."""

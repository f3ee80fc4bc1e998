"""Scores anybody's answer files in the layouts of the official tools; needs no study and no images."""

"""`transformers serve`, started as a user would; called with its arguments, in a process of its own."""

import sys

# Beside a CPU build of torch, torchvision's compiled image reader doesn't load, and the server would answer every image
# with a 500; without torchvision transformers reads images with Pillow.
sys.modules["torchvision"] = None

from transformers.cli.transformers import main  # noqa: E402

main()

"""``python -m miriam`` is the command ``miriam``."""

from miriam.cli import main

main()

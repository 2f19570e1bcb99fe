"""``python -m dasearch``, and ``torchrun -m dasearch``: the command line."""

from dasearch.cli import main

if __name__ == "__main__":
    main()

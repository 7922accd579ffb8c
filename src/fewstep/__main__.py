"""``python -m fewstep``: the command line."""

from fewstep.entry import main

if __name__ == "__main__":
    main()

"""``python -m fewstep``: the command line."""

from fewstep.start import main

if __name__ == "__main__":
    main()

"""``python -m msif`` lists the commands."""

from msif.cli.scripts import main

if __name__ == "__main__":
    main()

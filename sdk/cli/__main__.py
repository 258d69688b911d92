"""`python -m sdk.cli`: npuctl without an installed script."""

from sdk.cli import main

if __name__ == "__main__":
    main()

"""`python -m sdk.cli`: npuctl without an installed script."""

from npuctl import main

if __name__ == "__main__":
    main()

"""`python -m kvstore.testing`: the campaign of seeded runs; see `--help`."""

from kvstore.testing.campaign import main

if __name__ == "__main__":
    main()
